"""The faults of the host's own SelfAttentionGuidance node in a sampling run (1-6, 12, 17-22, 24, 25), none of
which ours has. Each test runs on ours and, as a strict expected failure that names the error it fails with,
on the host's, so it shows that it finds the fault. The list is docs/host_sag_faults.md.
"""

import gc
import threading

import comfy_extras.nodes_easycache as easycache
import comfy_extras.nodes_pag as pag
import comfy_extras.nodes_sag as host_sag
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from inner_guidance.guidance import attention_chunks
from inner_guidance.host.keys import TAG
from inner_guidance.nodes.self_attention_guidance import InnerSelfAttentionGuidance
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.sag_nodes import SCALE, fault, ours
from inner_guidance.tests.support.tiny_models import result_of

pytestmark = pytest.mark.oldest_host


def sample_steps(model, latent=None, **kwargs):
    """The denoised result of every step, in float64."""
    denoised = []
    tiny.sample(model, latent, callback=lambda i, x0, x, total: denoised.append(x0.double()), **kwargs)
    return denoised


@pytest.mark.parametrize(("kind", "model_type"), [("flux", "FLUX"), ("sd3", "FLOW"), ("lumina", "FLOW")])
@fault(AttributeError)
def test_fault_01_unets_only(sag, kind, model_type):
    model = tiny.patcher(kind, model_type)
    seen = tiny.watch(model)

    samples = tiny.sample(sag(model), torch.zeros(1, 16, 16, 16))

    assert seen.labels == [[1, 0], [1]] * 3
    tiny.assert_steered(samples, tiny.sample(tiny.patcher(kind, model_type), torch.zeros(1, 16, 16, 16)))


@fault(AttributeError)
def test_fault_02_no_negative(sag):
    model = tiny.patcher()
    seen = tiny.watch(model)

    samples = tiny.sample_with(tiny.BasicGuider(sag(model), tiny.prompt(0)))

    assert seen.labels == [[0], [0]] * 3
    tiny.assert_steered(samples, tiny.sample_with(tiny.BasicGuider(tiny.patcher(), tiny.prompt(0))))


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

    tiny.assert_steered(once_a, plain)
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
    tiny.assert_steered(sag_alone, plain)
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
def test_fault_12_stale_map_when_the_negative_ends(sag):
    model = tiny.patcher()
    seen = tiny.watch(model)

    tiny.sample(sag(model), steps=4, negative=tiny.prompt(1, start_percent=0.0, end_percent=0.5))

    last = [p.transformer_options["cond_or_uncond"] for p in seen.passes if p.sigma == seen.passes[-1].sigma]
    assert last == [[0], [0]]


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
    monkeypatch.setattr(attention_chunks, "CHUNK_ELEMENTS", 2**18)
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
    """Two runs of one MODEL, in step: both have computed queries when they go on to the keys."""
    model = sag(tiny.patcher())
    lockstep = []

    def wait(module, args):
        for barrier in lockstep:
            barrier.wait()

    attention = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1
    hook = attention.to_k.register_forward_pre_hook(wait)
    prompts = [tiny.prompt(5), tiny.prompt(6)]
    alone = [tiny.sample(model, steps=2, negative=prompt) for prompt in prompts]

    lockstep.append(threading.Barrier(2, timeout=60))
    results = [None, None]

    def run(i):
        with torch.inference_mode():
            results[i] = tiny.sample(model.clone(), steps=2, negative=prompts[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()

    tiny.assert_steered(*alone)
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
def test_fault_24_cfg_functions_do_not_see_the_guidance(sag):
    model_advanced = pytest.importorskip("comfy_extras.nodes_model_advanced")
    model = result_of(model_advanced.RescaleCFG().patch(tiny.patcher(), 1.0))
    seen = tiny.watch(model)

    denoised = sample_steps(sag(model), steps=1)[0]

    sampler, extra = seen.passes
    (uncond, cond), x, sigma = sampler.out.double().chunk(2), sampler.x[:1].double(), sampler.sigma
    g = SCALE * (extra.x.double() - x + uncond - extra.out.double())
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
    page = (root / "web" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")
    assert all(f"**{entry.id}**" in page for entry in schema.inputs if entry.id != "model")
