"""What Record Attention writes down, against an explicit softmax of the same queries and keys in float64."""

import gc
import logging
import weakref

import comfy.context_windows
import comfy_extras.nodes_hypertile as hypertile
import comfy_extras.nodes_pag as pag
import comfy_extras.nodes_perpneg as perpneg
import comfy_extras.nodes_tomesd as tome
import pytest
import recorded as rec
import sag_reference as paper
import tiny_models as tiny
import torch
from comfy.ldm.modules.attention import optimized_attention

from inner_guidance.guidance.host import record_run, recording
from inner_guidance.guidance.host.blocks import attention_blocks, layer_names

SHAPE = (2, 4, 16, 24)
# kind: {name of a layer: (its attentions' path, heads, grid)}
UNETS = {
    "sd15": {
        "m0.0": ("middle_block.1.transformer_blocks.0", 4, (2, 3)),
        "u8.0": ("output_blocks.11.1.transformer_blocks.0", 4, (16, 24)),
    },
    "sdxl": {
        "m0.1": ("middle_block.1.transformer_blocks.1", 8, (4, 6)),
        "u1.0": ("output_blocks.1.1.transformer_blocks.0", 8, (4, 6)),
    },
}


def spied(model, layers, run):
    """The (q, k) of attn1 and attn2 of these layers in every pass of run(), by layer."""
    modules = dict(model.model.diffusion_model.named_modules())
    attentions = [modules[f"{path}.{kind}"] for path, _, _ in layers.values() for kind in ("attn1", "attn2")]
    with paper.spy_on_attention(*attentions) as calls:
        run()
    return {name: calls[2 * i : 2 * i + 2] for i, name in enumerate(layers)}


@pytest.mark.parametrize("kind", UNETS)
def test_maps_of_a_unet_are_the_softmax(kind):
    layers = UNETS[kind]
    model = tiny.patcher(kind)
    watched, record = rec.record_attention(model, blocks=",".join(layers))

    calls = spied(model, layers, lambda: tiny.sample(watched, torch.zeros(*SHAPE), steps=2))

    steps = rec.steps_of(record)
    assert [step.number for step in steps] == [0, 1]
    for number, step in enumerate(steps):
        assert set(step.received) == {
            (branch, name) for branch in ("positive", "negative") for name in layers
        }
        assert set(step.prompt) == {(*key, 0) for key in step.received}
        for name, (_, heads, grid) in layers.items():
            attn1, attn2 = calls[name]
            for row, branch in enumerate(["negative"] * 2 + ["positive"] * 2):
                image = row % 2
                q, k = (t[row] for t in attn1[number])
                rec.assert_close_in_half(
                    step.received[branch, name][image, None], rec.received(q, k, heads, grid)
                )
                q, k = (t[row] for t in attn2[number])
                rec.assert_close_in_half(
                    step.prompt[branch, name, 0][image, None], rec.given(q, k, heads, grid)
                )


# kind: (model type, layer, the number of its attention call in a pass, heads, where the image starts)
JOINT = {
    "sd3": ("FLOW", "b2", 3, 7),
    "flux": ("FLUX", "b4", 4, 7),
    "chroma": ("FLUX", "b1", 1, 7),
    "qwen": ("FLUX", "b1", 1, 7),
    "lumina": ("FLOW", "b1", 3, 7),
    "zimage": ("FLOW", "b1", 3, 32),
}


def joint_latent(kind):
    return torch.zeros(1, 16, *([1] if kind == "qwen" else []), 16, 12)


@pytest.mark.parametrize("kind", JOINT)
def test_maps_of_a_joint_model(kind):
    """Received: softmax among the image's tokens. To the prompt: the weights of the whole sequence."""
    model_type, name, number, start = JOINT[kind]
    model = tiny.patcher(kind, model_type)
    watched, record = rec.record_attention(model, blocks=name)
    with rec.all_attention(watched) as calls:
        tiny.sample(watched, joint_latent(kind), steps=1)

    (step,) = rec.steps_of(record)
    q, k = calls[number]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    heads = q.shape[1]
    grid = (1, 8, 6) if kind == "qwen" else (8, 6)
    for row, branch in enumerate(["negative", "positive"]):
        q_row, k_row = (t[row].transpose(0, 1).flatten(1) for t in (q, k))
        image = slice(start, start + 48)
        expected = rec.received(q_row[image], k_row[image], heads, grid)
        rec.assert_close_in_half(step.received[branch, name], expected)
        expected = rec.softmax(q_row[image], k_row, heads)[:, :7].T.reshape(1, 7, *grid)
        rec.assert_close_in_half(step.prompt[branch, name, 0], expected)


def test_a_joint_model_is_recorded_under_its_block_name():
    watched, record = rec.record_attention(tiny.patcher("flux", "FLUX"), blocks="m0")

    tiny.sample(watched, joint_latent("flux"), steps=1)

    assert set(rec.steps_of(record)[0].received) == {("positive", "b2"), ("negative", "b2")}


@pytest.mark.parametrize(
    ("kind", "model_type", "blocks"),
    [
        ("sd15", "EPS", "d0-d5,m0,u0-u8"),
        ("sdxl", "V_PREDICTION", "m0,u0-u5"),
        ("sd3", "FLOW", "b0-b2"),
        ("flux", "FLUX", "b0-b4"),
    ],
)
def test_the_image_is_bit_identical_and_maps_are_small(kind, model_type, blocks):
    latent = joint_latent(kind) if kind in JOINT else torch.zeros(2, 4, 16, 16)
    watched, record = rec.record_attention(tiny.patcher(kind, model_type), blocks=blocks)

    assert torch.equal(tiny.sample(watched, latent), tiny.sample(tiny.patcher(kind, model_type), latent))
    for step in rec.steps_of(record):
        for tensor in (*step.received.values(), *step.prompt.values()):
            assert tensor.dtype == torch.float16
            assert tensor.device.type == "cpu"
            assert not tensor._is_view() or tensor.untyped_storage().nbytes() == 2 * tensor.numel()
            assert tensor.isfinite().all()


def test_without_the_prompt_there_is_only_self_attention():
    watched, record = rec.record_attention(tiny.patcher(), prompt=False)

    tiny.sample(watched, steps=1)

    (step,) = rec.steps_of(record)
    assert step.prompt == {}
    assert len(step.received) == 2


# Steps


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpmpp_2s_ancestral", "dpmpp_sde"])
def test_one_entry_a_step_of_the_schedule_at_the_steps_own_latent(sampler):
    """Heun's method evaluates the sigma of the next step before it is there: the later evaluation is kept."""
    model = tiny.patcher()
    seen = tiny.watch(model)
    watched, record = rec.record_attention(model, prompt=False)
    where = []
    tiny.sample(watched, steps=4, sampler=sampler, callback=lambda i, x0, x, total: where.append(x.clone()))

    (run,) = record.runs
    schedule = seen.passes[0].transformer_options["sample_sigmas"].tolist()
    assert [step.number for step in run.steps] == [0, 1, 2, 3]
    assert [step.sigma for step in run.steps] == pytest.approx(schedule[:-1])
    for step, x in zip(run.steps, where, strict=True):
        alone, its_record = rec.record_attention(tiny.patcher(), prompt=False)
        tiny.sample_with(Once(alone, x, step.sigma), steps=1)
        (expected,) = rec.steps_of(its_record)
        rec.assert_close_in_half(step.received["positive", "m0.0"], expected.received["positive", "m0.0"])


class Once(tiny.BasicGuider):
    """Evaluates the model once, at this x and sigma."""

    def __init__(self, model, x, sigma):
        super().__init__(model, tiny.prompt(0))
        self.x, self.sigma = x, sigma

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        return super().predict_noise(self.x, torch.full_like(timestep, self.sigma), model_options, seed)


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({"max_steps": 3}, [0, 4, 7]),
        ({"max_steps": 1}, [7]),
        ({"max_steps": 8}, list(range(8))),
        ({"start_percent": 0.4, "end_percent": 0.9}, [3, 4, 5, 6]),
        ({"start_percent": 0.4, "max_steps": 2}, [3, 7]),
    ],
    ids=str,
)
def test_range_and_number_of_steps(settings, numbers):
    """8 steps, of which step i is at i / 7 of the schedule."""
    model = tiny.patcher()
    watched, record = rec.record_attention(model, prompt=False, **settings)

    tiny.sample(watched, steps=8)

    assert [step.number for step in rec.steps_of(record)] == numbers


def test_latent_and_image_size_are_told():
    watched, record = rec.record_attention(tiny.patcher(), prompt=False)

    tiny.sample(watched, torch.zeros(2, 4, 16, 24), steps=1)

    assert record.runs[0].latent_shape == (2, 4, 16, 24)
    assert record.runs[0].image_size == (128, 192)


# Runs


def test_two_samplers_and_a_second_queue():
    watched, record = rec.record_attention(tiny.patcher(), prompt=False)

    with rec.executing("3", "first"):
        tiny.sample(watched, steps=2)
    with rec.executing("8", "first"):
        tiny.sample(watched, torch.zeros(1, 4, 8, 8), steps=3)
    kept = record.runs[1]
    with rec.executing("3", "second"):
        tiny.sample(watched, torch.zeros(1, 4, 24, 24), steps=1)

    assert [(run.execution.node_id, len(run.steps)) for run in record.runs] == [("8", 3), ("3", 1)]
    assert record.runs[0] is kept  # the sampler that the host has in its cache
    assert record.runs[1].latent_shape == (1, 4, 24, 24)


def test_two_recorded_branches_of_a_graph_do_not_mix():
    trunk = tiny.patcher()
    first, first_record = rec.record_attention(trunk)
    _, second_record = rec.record_attention(trunk)

    tiny.sample(first, steps=1)

    assert len(first_record.runs) == 1
    assert second_record.runs == []


def test_nothing_but_the_record_outlives_a_run(monkeypatch):
    alive = []
    for owner, name in ((record_run, "RecordedRun"), (record_run, "Recorder"), (recording, "Evaluation")):

        class Remembered(getattr(owner, name)):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                alive.append(weakref.ref(self))

        monkeypatch.setattr(owner, name, Remembered)
    watched, record = rec.record_attention(tiny.patcher())
    tiny.sample(watched)
    steps = [weakref.ref(t) for step in rec.steps_of(record) for t in step.received.values()]

    gc.collect()
    assert len(alive) == 1 + 3 + 3
    assert [ref() for ref in alive if ref() is not None] == []
    del watched, record
    gc.collect()
    assert [ref() for ref in steps if ref() is not None] == []


# Conditions


def test_areas_are_blended_and_prompts_kept_apart():
    """The left half has a prompt of its own; both have the right place and the grid of the whole."""
    left = tiny.prompt(5, tokens=9, area=(16, 8, 0, 0))
    watched, record = rec.record_attention(tiny.patcher())

    tiny.sample(watched, positive=[*tiny.prompt(0), *left], steps=1)

    (step,) = rec.steps_of(record)
    assert step.received["positive", "m0.0"].shape == (1, 8, 8)
    whole, part = step.prompt["positive", "m0.0", 0], step.prompt["positive", "m0.0", 1]
    assert whole.shape == (1, 7, 8, 8)
    assert part.shape == (1, 9, 8, 8)
    torch.testing.assert_close(part.float().sum(1)[..., :4], torch.ones(1, 8, 4), rtol=0, atol=5e-3)
    assert (part[..., 4:] == 0).all()
    torch.testing.assert_close(whole.float().sum(1), torch.ones(1, 8, 8), rtol=0, atol=5e-3)

    alone, its_record = rec.record_attention(tiny.patcher())
    tiny.sample(alone, steps=1)
    (expected,) = rec.steps_of(its_record)
    rec.assert_close_in_half(whole, expected.prompt["positive", "m0.0", 0])
    right = step.received["positive", "m0.0"][..., 4:]
    rec.assert_close_in_half(right, expected.received["positive", "m0.0"][..., 4:])


def test_a_prompt_that_the_host_repeats_has_its_own_tokens():
    """7 tokens beside 14: the host repeats the shorter one in the pass they share."""
    watched, record = rec.record_attention(tiny.patcher())
    alone, its_record = rec.record_attention(tiny.patcher())

    tiny.sample(watched, negative=tiny.prompt(1, tokens=14), steps=1)
    tiny.sample(alone, steps=1)

    (step,), (expected,) = rec.steps_of(record), rec.steps_of(its_record)
    assert step.prompt["negative", "m0.0", 0].shape == (1, 14, 8, 8)
    rec.assert_close_in_half(step.prompt["positive", "m0.0", 0], expected.prompt["positive", "m0.0", 0])


def test_a_prompt_that_is_not_active_is_not_there():
    late = tiny.prompt(5, start_percent=0.5)
    early = tiny.prompt(0, end_percent=0.5)
    watched, record = rec.record_attention(tiny.patcher())

    tiny.sample(watched, positive=[*early, *late], steps=4)

    conditions = [
        {c for branch, _, c in step.prompt if branch == "positive"} for step in rec.steps_of(record)
    ]
    assert conditions[0] == {0}
    assert conditions[-1] == {1}


@pytest.mark.parametrize("size", [1, 2], ids=["row by row", "image by image"])
def test_a_batch_that_is_split(size):
    def splitting(apply_model, args):
        x, t, c = args["input"].split(size), args["timestep"].split(size), dict(args["c"])
        context = c.pop("c_crossattn").split(size)
        parts = zip(x, t, context, strict=True)
        return torch.cat([apply_model(*part, c_crossattn=y, **c) for *part, y in parts])

    latent = torch.zeros(2, 4, 16, 16)
    whole, its_record = rec.record_attention(tiny.patcher())
    tiny.sample(whole, latent, steps=1)
    model = tiny.patcher()
    model.set_model_unet_function_wrapper(splitting)
    watched, record = rec.record_attention(model)
    tiny.sample(watched, latent, steps=1)

    (step,), (expected,) = rec.steps_of(record), rec.steps_of(its_record)
    for key, received in expected.received.items():
        rec.assert_close_in_half(step.received[key], received)
    for key, prompt in expected.prompt.items():
        rec.assert_close_in_half(step.prompt[key], prompt)


def test_branches_of_guiders_with_lists_of_their_own():
    watched, record = rec.record_attention(tiny.patcher(), prompt=False)
    guider = perpneg.Guider_PerpNeg(watched)
    guider.set_conds(tiny.prompt(0), tiny.prompt(1), tiny.prompt(9))
    guider.set_cfg(4.0, 1.0)
    tiny.sample_with(guider, steps=1)

    (step,) = rec.steps_of(record)
    assert {branch for branch, _ in step.received} == {"positive", "negative", "empty_negative_prompt"}
    for branch, prompt in (("positive", 0), ("negative", 1), ("empty_negative_prompt", 9)):
        alone, its_record = rec.record_attention(tiny.patcher(), prompt=False)
        tiny.sample_with(tiny.BasicGuider(alone, tiny.prompt(prompt)), steps=1)
        expected = rec.steps_of(its_record)[0].received["positive", "m0.0"]
        rec.assert_close_in_half(step.received[branch, "m0.0"], expected)


def test_context_windows_are_put_together():
    """5 images in windows 0-2 and 2-4, which are evaluated like a batch."""
    handler = comfy.context_windows.IndexListContextHandler(
        comfy.context_windows.get_matching_context_schedule("standard_static"),
        comfy.context_windows.get_matching_fuse_method("overlap-linear"),
        context_length=3,
        context_overlap=1,
    )
    model = tiny.patcher()
    model.model_options["context_handler"] = handler
    watched, record = rec.record_attention(model)
    plain, its_record = rec.record_attention(tiny.patcher())
    latent = torch.zeros(5, 4, 16, 16)

    tiny.sample(watched, latent, steps=1)
    tiny.sample(plain, latent, steps=1)

    (step,), (expected,) = rec.steps_of(record), rec.steps_of(its_record)
    for key in expected.received:
        rec.assert_close_in_half(step.received[key], expected.received[key])
    for key in expected.prompt:
        rec.assert_close_in_half(step.prompt[key], expected.prompt[key])


# Beside other nodes


def result_of(node_output):
    return node_output[0] if isinstance(node_output, tuple) else node_output.result[0]


OTHERS = {
    "SAG": tiny.guided,
    "PAG": lambda model: result_of(pag.PerturbedAttentionGuidance.execute(model, 3.0)),
    "HyperTile": lambda model: result_of(hypertile.HyperTile.execute(model, 32, 2, 1, False)),
    "ToMe": lambda model: result_of(tome.TomePatchModel.execute(model, 0.5)),
}


@pytest.mark.parametrize("record_first", [True, False], ids=["record first", "record last"])
@pytest.mark.parametrize("other", OTHERS)
def test_beside_other_nodes(other, record_first):
    """The image is bit for bit what the other node alone makes; only the sampler's own pass is recorded."""
    attach = OTHERS[other]
    torch.manual_seed(0)  # ToMe and HyperTile draw from the global generator
    expected = tiny.sample(attach(tiny.patcher()))

    torch.manual_seed(0)
    if record_first:
        model, record = rec.record_attention(tiny.patcher(), blocks="m0,u3")
        model = attach(model)
    else:
        model, record = rec.record_attention(attach(tiny.patcher()), blocks="m0,u3")
    assert torch.equal(tiny.sample(model), expected)

    steps = rec.steps_of(record)
    assert len(steps) == 3
    plain, its_record = rec.record_attention(tiny.patcher(), blocks="m0,u3")
    tiny.sample(plain, steps=3)
    of_plain = rec.steps_of(its_record)[0]
    assert steps[0].received.keys() == of_plain.received.keys()
    for key, received in steps[0].received.items():
        torch.testing.assert_close(received.float().mean(), torch.tensor(1.0), rtol=0, atol=1e-2)
        if other in ("SAG", "PAG"):
            assert torch.equal(received, of_plain.received[key])
    for key, prompt in steps[0].prompt.items():
        if other in ("SAG", "PAG"):
            assert torch.equal(prompt, of_plain.prompt[key])


def test_each_evaluation_is_read_once(monkeypatch):
    """Neither PAG's pass nor the second of SAG is read; SAG reads the negative once more, for itself."""
    rows = []
    received = recording.received_attention
    monkeypatch.setattr(
        recording, "received_attention", lambda q, k, mask: rows.append(len(q)) or received(q, k, mask)
    )
    model, _ = rec.record_attention(OTHERS["PAG"](tiny.guided(tiny.patcher())))

    tiny.sample(model, steps=2)

    assert sorted(rows) == [1, 1, 2, 2]


def test_a_replaced_attention_to_the_prompt_is_read():
    """As IPAdapter does it."""

    def replaced(q, k, v, extra_options):
        return optimized_attention(q, k, v, extra_options["n_heads"]) + 0.1

    model = tiny.patcher()
    model.set_model_attn2_replace(replaced, "middle", 0)
    watched, record = rec.record_attention(model)
    plain, its_record = rec.record_attention(tiny.patcher())

    samples = tiny.sample(watched, steps=1)
    tiny.sample(plain, steps=1)

    assert torch.equal(samples, tiny.sample(model, steps=1))
    (step,), (expected,) = rec.steps_of(record), rec.steps_of(its_record)
    assert torch.equal(step.prompt["positive", "m0.0", 0], expected.prompt["positive", "m0.0", 0])


def test_attention_overrides_are_chained():
    model = tiny.patcher()

    def override(attention, q, k, v, *args, **kwargs):
        return attention(q, k, v, *args, **kwargs) * 1.01

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    watched, record = rec.record_attention(model)

    assert torch.equal(tiny.sample(watched), tiny.sample(model))
    assert len(rec.steps_of(record)) == 3


# Bad input


def test_wrong_blocks_are_refused_before_any_sampling():
    with pytest.raises(ValueError, match=r"no block u7. It has d0-d1, m0, u0-u3"):
        rec.record_attention(tiny.patcher(), blocks="u7")


def test_attention_that_cannot_be_read_is_reported_once(caplog):
    model = tiny.patcher()
    model.set_model_attn1_patch(lambda q, k, v, extra_options: (q, k[:, 1:], v[:, 1:]))
    watched, record = rec.record_attention(model, prompt=False)

    with caplog.at_level(logging.WARNING):
        tiny.sample(watched)

    warnings = [r.getMessage() for r in caplog.records if "Record Attention" in r.getMessage()]
    assert len(warnings) == 1
    with pytest.raises(ValueError, match="nothing was read of this sampler's run"):
        record.run_for(None, None)


def test_names_of_layers():
    available = attention_blocks(tiny.patcher("sdxl").model.diffusion_model)

    names = list(layer_names(available).values())

    assert names[:2] == ["d0.0", "d1.0"]
    assert "m0.1" in names
    assert len(names) == sum(len(layers) for layers in available.values())
