"""What Record Attention writes down, against an explicit softmax of the same queries and keys in float64."""

import pytest
import torch

from inner_guidance.host.taps.blocks import attention_blocks, layer_names
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import sag_reference as paper
from inner_guidance.tests.support import tiny_models as tiny

pytestmark = pytest.mark.oldest_host

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
                rec.assert_close(step.received[branch, name][image, None], rec.received(q, k, heads, grid))
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
        rec.assert_close(step.received[branch, name], expected)
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
        assert all(received.dtype == torch.float32 for received in step.received.values())
        assert all(given.dtype == torch.float16 for given in step.prompt.values())
        for tensor in (*step.received.values(), *step.prompt.values()):
            assert tensor.device.type == "cpu"
            whole = tensor.element_size() * tensor.numel()
            assert not tensor._is_view() or tensor.untyped_storage().nbytes() == whole
            assert tensor.isfinite().all()


def test_without_the_prompt_there_is_only_self_attention():
    watched, record = rec.record_attention(tiny.patcher(), prompt=False)

    tiny.sample(watched, steps=1)

    (step,) = rec.steps_of(record)
    assert step.prompt == {}
    assert len(step.received) == 2


def test_wrong_blocks_are_refused_before_any_sampling():
    with pytest.raises(ValueError, match=r"no block u7. It has d0-d1, m0, u0-u3"):
        rec.record_attention(tiny.patcher(), blocks="u7")


def test_names_of_layers():
    available = attention_blocks(tiny.patcher("sdxl").model.diffusion_model)

    names = list(layer_names(available).values())

    assert names[:2] == ["d0.0", "d1.0"]
    assert "m0.1" in names
    assert len(names) == sum(len(layers) for layers in available.values())
