"""Self-Attention Guidance on SD3.5, Flux, Chroma, Qwen-Image, Lumina 2 and Z-Image: tiny ones."""

import comfy_extras.nodes_slg as slg
import pytest
import torch

from inner_guidance.tests.support import sag_reference as paper
from inner_guidance.tests.support import tiny_models as tiny

pytestmark = pytest.mark.oldest_host

BLUR_SIGMA = 1.3
TEXT = 7  # tokens of a prompt of tiny_models

# kind: (model type, block, the number of its attention call in a pass, its heads, where the image starts)
FAMILIES = {
    "sd3": ("FLOW", "b2", 3, 2, TEXT),  # b0 has two attentions
    "flux": ("FLUX", "b1", 1, 2, TEXT),
    "flux single": ("FLUX", "b4", 4, 2, TEXT),
    "chroma": ("FLUX", "b3", 3, 2, TEXT),
    "qwen": ("FLUX", "b1", 1, 2, TEXT),
    "lumina": ("FLOW", "b1", 3, 2, TEXT),  # after a refiner of the text and one of the image
    "zimage": ("FLOW", "b1", 3, 8, 32),  # the text filled up to 32 tokens
}


def patcher(family):
    return tiny.patcher(family.split()[0], FAMILIES[family][0])


def latent_for(family, height=16, width=12, batch=1):
    frames = (1,) if family == "qwen" else ()
    return torch.zeros(batch, 16, *frames, height, width)


def spy(model):
    """All attention calls of the model: (q, k), heads before tokens, in float64."""
    calls = []

    def override(attention, q, k, v, heads, *args, **kwargs):
        pair = (
            [q, k]
            if kwargs.get("skip_reshape")
            else [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k)]
        )
        calls.append([t.double() for t in pair])
        return attention(q, k, v, heads, *args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = tiny.looks_on(override)
    return calls


@pytest.mark.parametrize("size", [(16, 12), (7, 10)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_the_papers(family, size):
    _, block, number, heads, start = FAMILIES[family]
    model = patcher(family)
    seen, calls = tiny.watch(model), spy(model)
    denoised = []

    tiny.sample(
        tiny.guided(model, blocks=block, blur_sigma=BLUR_SIGMA),
        latent_for(family, *size),
        steps=3,
        scheduler="simple",
        callback=lambda i, x0, x, total: denoised.append(x0.double()),
    )

    assert seen.labels == [[1, 0], [1]] * 3
    sampler, extra = seen.passes[2:4]
    a_pass = len(calls) // len(seen)
    q, k = (t[0].transpose(0, 1).flatten(1) for t in calls[2 * a_pass + number])  # (tokens, heads * d)
    grid = [-(-side // 2) for side in size]
    image = slice(start, start + grid[0] * grid[1])
    received = paper.received(q[image], k[image], heads).view(*grid)
    mask = paper.nearest(received, *size) > paper.THRESHOLD
    assert 0 < mask.sum() < mask.numel()

    (x, _), (x0, positive) = sampler.x.double().chunk(2), sampler.out.double().chunk(2)
    x0_bar = paper.degraded(x0, mask, BLUR_SIGMA)
    x_bar = x + (1 - sampler.sigma) * (x0_bar - x0)
    torch.testing.assert_close(extra.x.double(), x_bar, rtol=1e-5, atol=1e-5 * float(x0.abs().max()))
    expected = x0 + 4 * (positive - x0) + paper.SCALE * (x0_bar - extra.out.double())
    torch.testing.assert_close(denoised[1], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_recording_leaves_the_samplers_pass_bit_identical(family):
    model, plain = patcher(family), patcher(family)
    seen, seen_plain = tiny.watch(model), tiny.watch(plain)

    tiny.sample(tiny.guided(model, blocks="b0-b2"), latent_for(family), steps=1)
    tiny.sample(plain, latent_for(family), steps=1)

    assert torch.equal(seen.passes[0].out, seen_plain.passes[0].out)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("family", "blocks"),
    [("sd3", 3), ("flux", 5), ("chroma", 5), ("qwen", 3), ("lumina", 3), ("zimage", 3)],
)
def test_the_default_block_is_at_half_depth(family, blocks):
    def samples(text):
        return tiny.sample(tiny.guided(patcher(family), blocks=text), latent_for(family), steps=1)

    assert torch.equal(samples("m0"), samples(f"b{blocks // 2}"))
    assert not torch.equal(samples("m0"), samples("b0"))
    with pytest.raises(ValueError, match=rf"no block b{blocks}. It has b0-b{blocks - 1}, m0\."):
        samples(f"b{blocks}")
    with pytest.raises(ValueError, match="no block u0"):
        samples("u0")


@pytest.mark.parametrize("family", FAMILIES)
def test_cfg_1_and_a_prompt_of_another_length(family):
    """Distilled models have no negative; prompts of two lengths make two passes."""
    model = patcher(family)
    seen = tiny.watch(model)

    alone = tiny.sample(tiny.guided(model), latent_for(family), cfg=1.0, steps=1)
    assert seen.labels == [[0], [0]]
    both = tiny.sample(tiny.guided(model), latent_for(family), negative=tiny.prompt(1, tokens=11), steps=1)

    assert sorted(seen.labels[2:4]) == [[0], [1]]
    assert seen.labels[4] == [1]
    plain = patcher(family)
    tiny.assert_steered(alone, tiny.sample(plain, latent_for(family), cfg=1.0, steps=1))
    tiny.assert_steered(
        both, tiny.sample(plain, latent_for(family), negative=tiny.prompt(1, tokens=11), steps=1)
    )


@pytest.mark.parametrize("family", ["flux", "flux single", "qwen"])
def test_reference_images_are_not_the_image(family):
    """Kontext and Qwen-Image-Edit: more images behind the image, whose attention is not read."""
    _, block, number, heads, start = FAMILIES[family]
    model = patcher(family)
    seen, calls = tiny.watch(model), spy(model)
    reference = tiny.noise(*latent_for(family, 8, 8).shape, seed=4)
    prompts = {
        "positive": tiny.prompt(0, reference_latents=[reference]),
        "negative": tiny.prompt(1, reference_latents=[reference]),
    }

    tiny.sample(
        tiny.guided(model, blocks=block, blur_sigma=BLUR_SIGMA), latent_for(family), steps=1, **prompts
    )

    sampler, extra = seen.passes
    q, k = (t[0].transpose(0, 1).flatten(1) for t in calls[number])
    assert len(k) == start + 48 + 16
    received = paper.received(q[start:][:48], k[start:][:48], heads).view(8, 6)
    mask = paper.nearest(received, 16, 12) > paper.THRESHOLD
    x, x0 = sampler.x[:1].double(), sampler.out[:1].double()
    changed = (extra.x.double() - x).abs().amax(1)[0] > 1e-6
    expected = ((1 - sampler.sigma) * (paper.degraded(x0, mask, BLUR_SIGMA) - x0)).abs().amax(1)[0] > 1e-6
    assert torch.equal(changed, expected)


def test_skipped_layers_of_slg_are_only_skipped_in_its_own_pass():
    def with_slg(model):
        return slg.SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, "1", "").result[0]

    def first(model):
        denoised = []
        tiny.sample(
            model, latent_for("sd3"), steps=1, callback=lambda i, x0, *_: denoised.append(x0.double())
        )
        return denoised[0]

    plain, slg_alone = first(patcher("sd3")), first(with_slg(patcher("sd3")))
    sag_alone = first(tiny.guided(patcher("sd3"), blocks="b1"))

    both = first(with_slg(tiny.guided(patcher("sd3"), blocks="b1")))

    tiny.assert_steered(slg_alone, plain)
    tiny.assert_steered(sag_alone, plain)
    torch.testing.assert_close(both - slg_alone, sag_alone - plain, rtol=1e-4, atol=1e-4)


def test_batch_of_flux_has_a_mask_an_image():
    model = patcher("flux")
    seen = tiny.watch(model)

    tiny.sample(tiny.guided(model), latent_for("flux", batch=3), steps=2, scheduler="simple")

    change = (seen.passes[3].x - seen.passes[2].x[:3]).abs().amax(1) > 1e-6
    assert not torch.equal(change[0], change[1])
