"""The 25 faults of the host's own SelfAttentionGuidance node, none of which ours has.

Each test runs on ours and, as a strict expected failure that names the error it fails with, on the host's, so
it shows that it finds the fault.
"""

import gc
import threading

import comfy_extras.nodes_easycache as easycache
import comfy_extras.nodes_hypertile as hypertile
import comfy_extras.nodes_model_downscale as downscale
import comfy_extras.nodes_pag as pag
import comfy_extras.nodes_sag as host_sag
import pytest
import sag_reference as paper
import tiny_models as tiny
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from torch.utils._python_dispatch import TorchDispatchMode

from inner_guidance.guidance import self_attention
from inner_guidance.guidance.host.extra_pass import TAG
from inner_guidance.nodes.self_attention_guidance import InnerSelfAttentionGuidance

BLUR_SIGMA = 1.3  # 9 taps on either node, so that only a fault can tell them apart


def ours(model, **settings):
    """The model with our node behind it."""
    return tiny.guided(model, **{"blur_sigma": BLUR_SIGMA} | settings)


def hosts_own(model, scale=0.75, blur_sigma=BLUR_SIGMA):
    """The model with the host's node behind it."""
    return host_sag.SelfAttentionGuidance.execute(model, scale, blur_sigma).result[0]


def fault(raises):
    """Run the test on ours, and on the host's, where it must fail with this error."""
    return pytest.mark.parametrize(
        "sag",
        [
            pytest.param(ours, id="ours"),
            pytest.param(hosts_own, id="hosts", marks=pytest.mark.xfail(raises=raises, strict=True)),
        ],
    )


def result_of(node_output):
    """The model that a node of the host returns, V1 or V3."""
    return node_output[0] if isinstance(node_output, tuple) else node_output.result[0]


def middle_attention(model):
    """attn1 of the middle block."""
    return model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1


def sample_steps(model, latent=None, **kwargs):
    """The denoised result of every step, in float64."""
    denoised = []
    tiny.sample(model, latent, callback=lambda i, x0, x, total: denoised.append(x0.double()), **kwargs)
    return denoised


def first_step(sag, model, latent=None, grid=(8, 8), blur_sigma=BLUR_SIGMA):
    """x_bar - x of the first step, and the paper's."""
    seen = tiny.watch(model)
    with paper.spy_on_attention(middle_attention(model)) as [calls]:
        tiny.sample(sag(model, blur_sigma=blur_sigma), latent, steps=1)
    sampler, extra = seen.passes
    q, k = calls[0]
    x, x0 = sampler.x[:1].double(), sampler.out[:1].double()
    size = x.shape[2:]
    mask = paper.nearest(paper.received(q[0], k[0], heads=4).view(grid), *size) > 1
    return extra.x.double() - x, paper.degraded(x0, mask, blur_sigma) - x0


@pytest.mark.parametrize("sag", [ours, hosts_own])
def test_both_are_the_papers_in_the_simplest_case(sag):
    """So a test below that fails on the host's node fails for its fault."""
    change, expected = first_step(sag, tiny.patcher())

    torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("kind", "model_type"), [("flux", "FLUX"), ("sd3", "FLOW"), ("lumina", "FLOW")])
@fault(AttributeError)
def test_fault_01_unets_only(sag, kind, model_type):
    model = tiny.patcher(kind, model_type)
    seen = tiny.watch(model)

    assert tiny.sample(sag(model), torch.zeros(1, 16, 16, 16)).isfinite().all()
    assert seen.labels == [[1, 0], [1]] * 3


@fault(AttributeError)
def test_fault_02_no_negative(sag):
    model = tiny.patcher()
    seen = tiny.watch(model)

    assert tiny.sample_with(tiny.BasicGuider(sag(model), tiny.prompt(0))).isfinite().all()
    assert seen.labels == [[0], [0]] * 3


@fault(AttributeError)
def test_fault_03_two_in_series(sag):
    once_a, once_b, plain = (
        sample_steps(model, steps=1)[0]
        for model in (
            sag(tiny.patcher(), scale=0.5),
            sag(tiny.patcher(), scale=0.3, blur_sigma=2.0),
            tiny.patcher(),
        )
    )

    twice = sample_steps(sag(sag(tiny.patcher(), scale=0.5), scale=0.3, blur_sigma=2.0), steps=1)[0]

    torch.testing.assert_close(twice - plain, (once_a - plain) + (once_b - plain), rtol=1e-4, atol=1e-3)


@fault(AssertionError)
def test_fault_04_pag_loses_its_effect(sag):
    def with_pag(model):
        return result_of(pag.PerturbedAttentionGuidance.execute(model, 3.0))

    plain, pag_alone, sag_alone, both = (
        sample_steps(model, steps=1)[0]
        for model in (
            tiny.patcher(),
            with_pag(tiny.patcher()),
            sag(tiny.patcher()),
            with_pag(sag(tiny.patcher())),
        )
    )

    assert (pag_alone - plain).abs().max() > 1
    torch.testing.assert_close(both - sag_alone, pag_alone - plain, rtol=1e-4, atol=1e-3)


@fault(AssertionError)
def test_fault_05_extra_pass_is_labelled_positive(sag):
    model = tiny.patcher()
    seen = tiny.watch(model)

    tiny.sample(sag(model))

    assert seen.labels == [[1, 0], [1]] * 3


@fault(AssertionError)
def test_fault_06_scale_0_costs_a_pass(sag):
    model = tiny.patcher()
    seen = tiny.watch(model)

    samples = tiny.sample(sag(model, scale=0.0))

    assert len(seen) == 3
    assert torch.equal(samples, tiny.sample(tiny.patcher()))


@fault(AssertionError)
def test_fault_07_blur_sigma_zero(sag):
    assert tiny.sample(sag(tiny.patcher(), blur_sigma=0.0)).isfinite().all()


@fault(AssertionError)
def test_fault_08_kernel_does_not_grow(sag):
    """The host's 9 taps are 3 sigma of a sigma of 1.5."""
    change, expected = first_step(
        sag, tiny.patcher(), torch.zeros(1, 4, 32, 32), grid=(16, 16), blur_sigma=3.0
    )

    torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-4)


@fault(AssertionError)
def test_fault_09_regional_prompts_take_the_last_map(sag):
    model = tiny.patcher()
    seen = tiny.watch(model)
    positive = tiny.prompt(0) + tiny.prompt(2, area=(8, 8, 4, 6), strength=0.7)
    with paper.spy_on_attention(middle_attention(model)) as [calls]:
        tiny.sample(sag(model), steps=1, positive=positive)
    assert seen.labels[:2] == [[1, 0], [1, 0]]

    # The host gives the negative the same area, and lets an area fade at its border.
    region = (slice(4, 12), slice(6, 14))
    fade = torch.full((8, 8), 0.7, dtype=torch.float64)
    fade[[0, -1]] *= 0.5
    fade[:, [0, -1]] *= 0.5
    received, x0 = torch.zeros(16, 16).double(), torch.zeros(4, 16, 16).double()
    weight = torch.zeros(16, 16).double()
    for forward, (q, k) in zip(seen.passes[:2], calls[:2], strict=True):
        whole = forward.x.shape[-1] == 16
        place, share = ((slice(None),) * 2, torch.ones(16, 16)) if whole else (region, fade)
        side = forward.x.shape[-1]
        token_map = paper.received(q[0], k[0], heads=4).view(side // 2, side // 2)
        received[place] += paper.nearest(token_map, side, side) * share
        x0[(slice(None), *place)] += forward.out[0].double() * share
        weight[place] += share
    x, x0 = next(p.x[0] for p in seen.passes if p.x.shape[-1] == 16).double(), x0 / weight

    x_bar = x + paper.degraded(x0, received / weight > 1, BLUR_SIGMA) - x0

    extra = [p for p in seen.passes[2:] if p.x.shape[-1] == 16]
    torch.testing.assert_close(extra[0].x[0].double(), x_bar, rtol=1e-5, atol=1e-4)


def two_negatives(sag, model):
    """The x_bar of the first step with two negatives, and the paper's for the mean of their maps."""
    seen = tiny.watch(model)
    with paper.spy_on_attention(middle_attention(model)) as [calls]:
        tiny.sample(sag(model), steps=1, negative=tiny.prompt(1) + tiny.prompt(3))
    labels = [label for p in seen.passes for label in p.transformer_options["cond_or_uncond"]]
    rows = [(p, row) for p in seen.passes for row in range(len(p.x))]
    qk = [(q[row], k[row]) for q, k in calls for row in range(len(q))]
    negatives = [i for i, label in enumerate(labels[:3]) if label == 1]
    assert len(negatives) == 2

    received = sum(paper.received(*qk[i], heads=4).view(8, 8) for i in negatives) / 2
    x = rows[0][0].x[0].double()
    x0 = sum(rows[i][0].out[rows[i][1]].double() for i in negatives) / 2
    mask = paper.nearest(received, 16, 16) > 1
    extra, row = rows[3]
    return extra.x[row].double(), x + paper.degraded(x0, mask, BLUR_SIGMA) - x0, seen


@fault(AssertionError)
def test_fault_10_only_the_first_negative_counts(sag):
    x_bar, expected, seen = two_negatives(sag, tiny.patcher())

    assert sorted(seen.labels[0]) == [0, 1, 1]
    torch.testing.assert_close(x_bar, expected, rtol=1e-5, atol=1e-4)


@fault(AssertionError)
def test_fault_11_chunked_batches(sag, monkeypatch):
    model = tiny.patcher()
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e30)

    x_bar, expected, seen = two_negatives(sag, model)

    assert [len(labels) for labels in seen.labels[:3]] == [1, 1, 1]
    torch.testing.assert_close(x_bar, expected, rtol=1e-5, atol=1e-4)


@fault(AssertionError)
def test_fault_12_stale_map_when_the_negative_ends(sag):
    model = tiny.patcher()
    seen = tiny.watch(model)

    tiny.sample(sag(model), steps=4, negative=tiny.prompt(1, start_percent=0.0, end_percent=0.5))

    last = [p.transformer_options["cond_or_uncond"] for p in seen.passes if p.sigma == seen.passes[-1].sigma]
    assert last == [[0], [0]]


@pytest.mark.parametrize(("factor", "latent", "grid"), [(1.5, (18, 10), (6, 4)), (3.0, (24, 8), (4, 2))])
@fault((AssertionError, TypeError))
def test_fault_13_map_size_is_guessed(sag, factor, latent, grid):
    """Kohya's Deep Shrink gives maps whose sides are not in the ratio of the latent's."""
    model = result_of(
        downscale.PatchModelAddDownscale.execute(
            tiny.patcher(), 1, factor, 0.0, 1.0, True, "bicubic", "bicubic"
        )
    )

    change, expected = first_step(sag, model, torch.zeros(1, 4, *latent), grid=grid)

    torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-4)


@fault((AssertionError, RuntimeError, TypeError))
def test_fault_14_hypertile_mixes_tiles(sag):
    """HyperTile lets a tile of queries see a strip of the keys, which are in raster order."""
    model = tiny.patcher()
    model = result_of(hypertile.HyperTile.execute(model, 32, 2, 1, False))
    seen = tiny.watch(model)
    with paper.spy_on_attention(middle_attention(model)) as [calls]:
        tiny.sample(sag(model), steps=1)
    sampler, extra = seen.passes
    q, k = calls[0]
    tiles = q.shape[0] // 2
    assert tiles > 1
    strips = [paper.received(q[i], strip, heads=4) for i, strip in enumerate(k[0].chunk(tiles))]
    mask = paper.nearest(torch.cat(strips).view(8, 8), 16, 16) > 1

    x, x0 = sampler.x[:1].double(), sampler.out[:1].double()
    x_bar = x + paper.degraded(x0, mask, BLUR_SIGMA) - x0
    torch.testing.assert_close(extra.x.double(), x_bar, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("latent", "grid"), [((4, 4), (2, 2)), ((2, 16), (1, 8)), ((4, 3), (2, 2))])
@fault((AssertionError, ValueError))
def test_fault_15_small_latents_get_no_guidance(sag, latent, grid):
    change, expected = first_step(sag, tiny.patcher(), torch.zeros(1, 4, *latent), grid=grid)

    assert expected.abs().max() > 0.1
    torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-4)


@fault(AssertionError)
def test_fault_16_flow_models_are_renoised_wrongly(sag):
    model = tiny.patcher(model_type="FLOW")
    seen = tiny.watch(model)
    with paper.spy_on_attention(middle_attention(model)) as [calls]:
        tiny.sample(sag(model), steps=3, scheduler="simple")
    sampler, extra = seen.passes[2:4]
    assert 0.2 < sampler.sigma < 0.8
    q, k = calls[2]
    x, x0 = sampler.x[:1].double(), sampler.out[:1].double()
    mask = paper.nearest(paper.received(q[0], k[0], heads=4).view(8, 8), 16, 16) > 1

    x_bar = x + (1 - sampler.sigma) * (paper.degraded(x0, mask, BLUR_SIGMA) - x0)
    torch.testing.assert_close(extra.x.double(), x_bar, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{"start_percent": 0.4}, {"end_percent": 0.4}, {"blocks": "u3"}, {"threshold": 1.3}, {"mask": "global"}],
    ids=str,
)
@fault(TypeError)
def test_fault_17_no_schedule_no_blocks_no_threshold(sag, settings):
    everywhere = tiny.sample(sag(tiny.patcher()))

    assert not torch.equal(tiny.sample(sag(tiny.patcher(), **settings)), everywhere)


class LargestTensor(TorchDispatchMode):
    """The most elements that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.numel())
        return out


@fault(AssertionError)
def test_fault_18_whole_attention_matrix_in_memory(sag, monkeypatch):
    """Where the model's attention needs no (N, N) matrix, the node needs none, not even one image's."""

    def fused(attention, q, k, v, heads, **kwargs):
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    model = tiny.patcher()
    model.model_options["transformer_options"]["optimized_attention_override"] = fused
    monkeypatch.setattr(self_attention, "CHUNK_ELEMENTS", 2**18)
    latent = torch.zeros(1, 4, 64, 64)
    tokens, heads = 32 * 32, 4

    with LargestTensor() as largest:
        tiny.sample(sag(model), latent, steps=1)

    assert largest.elements < tokens**2 * heads


def living_tensors():
    gc.collect()
    return {id(o): o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)}


@fault(AssertionError)
def test_fault_19_tensors_outlive_the_run(sag):
    model = sag(tiny.patcher())
    tiny.sample(tiny.patcher())  # whatever the host keeps
    before = living_tensors()

    tiny.sample(model)

    assert [t.shape for i, t in living_tensors().items() if i not in before] == []


@fault(AssertionError)
def test_fault_20_threads_mix_their_maps(sag):
    """Two runs of one MODEL, in step: each forward pass of one between the forward passes of the other."""
    model = sag(tiny.patcher())
    prompts = [tiny.prompt(5), tiny.prompt(6)]
    alone = [tiny.sample(model, steps=2, negative=prompt) for prompt in prompts]

    lockstep = threading.Barrier(2, timeout=60)

    def wrapper(executor, *args, **kwargs):
        lockstep.wait()
        out = executor(*args, **kwargs)
        lockstep.wait()
        return out

    together = model.clone()
    together.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "lockstep", wrapper)
    results = [None, None]

    def run(i):
        with torch.inference_mode():
            results[i] = tiny.sample(together.clone(), steps=2, negative=prompts[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for result, expected in zip(results, alone, strict=True):
        assert torch.equal(result, expected)


@fault(AssertionError)
def test_fault_21_function_wrappers_cannot_tell_the_pass(sag):
    model = tiny.patcher()
    guidances = []

    def wrapper(apply_model, args):
        guidances.append(args["c"]["transformer_options"].get(TAG))
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(wrapper)
    tiny.sample(sag(model))

    assert guidances == [None, "self_attention_guidance"] * 3


@fault(AssertionError)
def test_fault_22_step_caches_see_the_pass(sag, monkeypatch):
    model = easycache.EasyCacheNode.execute(tiny.patcher(), 10.0, 0.0, 1.0, False).result[0]
    remembered = []
    update = easycache.EasyCacheHolder.update_cache_diff
    monkeypatch.setattr(
        easycache.EasyCacheHolder,
        "update_cache_diff",
        lambda self, output, x, uuids: remembered.append(len(uuids)) or update(self, output, x, uuids),
    )

    tiny.sample(sag(model), steps=6)

    assert 0 < len(remembered) < 6
    assert set(remembered) == {2}


@fault(AssertionError)
def test_fault_23_unaware_of_the_denoise_mask(sag):
    model = tiny.patcher()
    seen = tiny.watch(model)
    keep = torch.zeros(1, 1, 16, 16)
    keep[..., 8:, :] = 1

    tiny.sample(sag(model), steps=1, noise_mask=keep)

    change = (seen.passes[1].x - seen.passes[0].x[:1]).abs().amax((0, 1))
    assert change[:8].max() < 1e-5
    assert change[8:].max() > 1


@fault(AssertionError)
def test_fault_24_cfg_functions_do_not_see_the_guidance(sag):
    model_advanced = pytest.importorskip("comfy_extras.nodes_model_advanced")
    model = result_of(model_advanced.RescaleCFG().patch(tiny.patcher(), 1.0))
    seen = tiny.watch(model)

    denoised = sample_steps(sag(model), steps=1)[0]

    sampler, extra = seen.passes
    (uncond, cond), x, sigma = sampler.out.double().chunk(2), sampler.x[:1].double(), sampler.sigma
    g = 0.75 * (extra.x.double() - x + uncond - extra.out.double())
    to_v = (sigma**2 + 1) ** 0.5 / sigma
    v_cond, v_uncond = ((x / (sigma**2 + 1) - (d + g)) * to_v for d in (cond, uncond))
    v = v_uncond + 4.0 * (v_cond - v_uncond)
    v = v * v_cond.std() / v.std()
    torch.testing.assert_close(denoised, x / (sigma**2 + 1) - v / to_v, rtol=1e-4, atol=1e-2)


@fault(AssertionError)
def test_fault_25_no_word_on_what_the_values_do(sag, root):
    node = InnerSelfAttentionGuidance if sag is ours else host_sag.SelfAttentionGuidance
    schema = node.define_schema()

    assert all(entry.tooltip for entry in [*schema.inputs, *schema.outputs])
    page = (root / "web" / "docs" / f"{schema.node_id}.md").read_text()
    assert all(f"**{entry.id}**" in page for entry in schema.inputs if entry.id != "model")
