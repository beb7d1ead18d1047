"""The demo model in the host's stock nodes: every sampler and scheduler, images in, masks, sizes."""

import itertools

import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_custom_sampler as custom

import nodes as stock
from inner_guidance.demo.ray_casting import render
from inner_guidance.demo.scenes import sample_scene
from inner_guidance.nodes.demo_model import InnerLoadDemoModel

KSAMPLER = comfy.samplers.KSampler
PROMPT = "red sphere, blue box, grey checker floor, white wall"


@pytest.fixture(scope="module")
def loaded():
    with torch.inference_mode():
        return InnerLoadDemoModel.execute().args[:3]


@pytest.fixture(scope="module")
def vae(loaded):
    return loaded[2]


@pytest.fixture(scope="module")
def picture():
    """(1, 256, 256, 3): a render of a scene that the model was not trained on."""
    return render(sample_scene(1_000_001)).rgb.permute(1, 2, 0)[None]


@pytest.fixture(scope="module")
def sample(loaded):
    """KSampler, with what the tests do not vary filled in."""
    model, clip, _ = loaded

    def sample(
        latent, prompt=PROMPT, negative="", steps=4, cfg=3.0, sampler="euler", scheduler="normal", denoise=1.0
    ):
        conds = [stock.CLIPTextEncode().encode(clip, text)[0] for text in (prompt, negative)]
        out = stock.KSampler().sample(model, 3, steps, cfg, sampler, scheduler, *conds, latent, denoise)[0]
        assert out["samples"].isfinite().all()
        return out

    return sample


def empty(size, batch_size=1):
    return stock.EmptyLatentImage().generate(size, size, batch_size)[0]


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", KSAMPLER.SCHEDULERS)
def test_every_scheduler(sample, scheduler):
    """Every sampler is tried in tests/compatibility."""
    drawn = sample(empty(128), scheduler=scheduler)["samples"]

    assert drawn.shape == (1, 4, 16, 16)
    assert 0.3 < drawn.std() < 2.5  # 1 on renders; a run that diverges leaves that far behind


def test_ksampler_advanced_in_two_parts(loaded, sample):
    model, clip, _ = loaded
    conds = [stock.CLIPTextEncode().encode(clip, text)[0] for text in (PROMPT, "")]

    def advanced(latent, add_noise, start, end, leftover):
        return stock.KSamplerAdvanced().sample(
            model, add_noise, 3, 4, 3.0, "euler", "normal", *conds, latent, start, end, leftover
        )[0]

    first = advanced(empty(128), "enable", 0, 2, "enable")
    both = advanced(first, "disable", 2, 10000, "disable")

    torch.testing.assert_close(both["samples"], sample(empty(128))["samples"], rtol=1e-3, atol=1e-3)


def test_sampler_custom_advanced_draws_the_same_picture(loaded, sample):
    model, clip, _ = loaded
    positive, negative = (stock.CLIPTextEncode().encode(clip, text)[0] for text in (PROMPT, ""))
    drawn, denoised = custom.SamplerCustomAdvanced.execute(
        custom.RandomNoise.execute(3).args[0],
        custom.CFGGuider.execute(model, positive, negative, 3.0).args[0],
        custom.KSamplerSelect.execute("euler").args[0],
        custom.BasicScheduler.execute(model, "normal", 4, 1.0).args[0],
        empty(128),
    ).args

    assert torch.equal(drawn["samples"], sample(empty(128))["samples"])
    torch.testing.assert_close(denoised["samples"], drawn["samples"], rtol=1e-3, atol=1e-3)


def test_guider_without_a_negative_is_cfg_1(loaded, sample):
    model, clip, _ = loaded
    drawn, _ = custom.SamplerCustomAdvanced.execute(
        custom.RandomNoise.execute(3).args[0],
        custom.BasicGuider.execute(model, stock.CLIPTextEncode().encode(clip, PROMPT)[0]).args[0],
        custom.KSamplerSelect.execute("euler").args[0],
        custom.BasicScheduler.execute(model, "normal", 4, 1.0).args[0],
        empty(128),
    ).args

    assert torch.equal(drawn["samples"], sample(empty(128), cfg=1.0)["samples"])


def test_prompts_of_different_length_meet_in_one_batch(loaded, sample):
    """The host repeats the shorter context, which attention does not notice."""
    model, clip, _ = loaded
    positive, negative = (stock.CLIPTextEncode().encode(clip, text)[0] for text in (PROMPT, "white wall"))
    twice = stock.ConditioningConcat().concat(negative, negative)[0]
    drawn = stock.KSampler().sample(model, 3, 4, 3.0, "euler", "normal", positive, twice, empty(128))[0]

    assert twice[0][0].shape[1] == 2 * positive[0][0].shape[1]
    torch.testing.assert_close(
        drawn["samples"], sample(empty(128), negative="white wall")["samples"], rtol=1e-3, atol=1e-3
    )


def test_long_prompt(sample):
    long = sample(empty(128), prompt=f"{PROMPT}, yellow cylinder, pink box, green sphere, black box")

    assert not torch.equal(long["samples"], sample(empty(128))["samples"])


def test_batch_and_sizes(sample, vae):
    drawn = sample(empty(64, batch_size=3))
    wide = sample(stock.EmptyLatentImage().generate(320, 200)[0], steps=2)

    assert drawn["samples"].shape == (3, 4, 8, 8)
    assert not torch.equal(drawn["samples"][0], drawn["samples"][1])
    assert stock.VAEDecode().decode(vae, wide)[0].shape == (1, 200, 320, 3)


@pytest.mark.slow
def test_conditioning_nodes(loaded):
    model, clip, _ = loaded
    red, blue = (stock.CLIPTextEncode().encode(clip, text)[0] for text in ("red sphere", "blue box"))
    zeroed = stock.ConditioningZeroOut().zero_out(red)[0]
    pictures = []
    for positive in (
        red,
        blue,
        stock.ConditioningCombine().combine(red, blue)[0],
        stock.ConditioningConcat().concat(red, blue)[0],
        stock.ConditioningAverage().addWeighted(red, blue, 0.5)[0],
        stock.ConditioningCombine().combine(
            stock.ConditioningSetArea().append(red, 64, 128, 0, 0, 1.0)[0],
            stock.ConditioningSetTimestepRange().set_range(blue, 0.0, 0.5)[0],
        )[0],
    ):
        drawn = stock.KSampler().sample(model, 3, 3, 3.0, "euler", "normal", positive, zeroed, empty(128))[0]
        assert drawn["samples"].isfinite().all()
        pictures.append(drawn["samples"])
    for one, other in itertools.combinations(pictures, 2):
        assert (one - other).norm() > 0.05 * one.norm()


@pytest.mark.slow
def test_prompt_decides_the_colour(sample, vae):
    """Fails on an untrained UNet, and on one whose text encoder is another's."""
    redness = {}
    for colour in ("red", "blue"):
        prompt = f"{colour} sphere, grey plain floor, white wall"
        drawn = sample(empty(256, batch_size=2), prompt, steps=10, sampler="dpmpp_2m", scheduler="karras")
        picture = stock.VAEDecode().decode(vae, drawn)[0]
        redness[colour] = (picture[..., 0] - picture[..., 2]).mean()

    assert redness["red"] > redness["blue"] + 0.01


def test_autoencoder_gives_a_render_back(vae, picture):
    latent = stock.VAEEncode().encode(vae, picture)[0]
    back = stock.VAEDecode().decode(vae, latent)[0]

    assert latent["samples"].shape == (1, 4, 32, 32)
    assert 0.6 < latent["samples"].std() < 1.6
    assert -10 * (back - picture).square().mean().log10() > 28


@pytest.mark.slow
def test_tiles_make_the_same_picture(vae, picture):
    whole = stock.VAEEncode().encode(vae, picture)[0]
    tiled = stock.VAEEncodeTiled().encode(vae, picture, tile_size=128, overlap=32)[0]
    decoded = stock.VAEDecodeTiled().decode(vae, whole, tile_size=128, overlap=32)[0]

    assert (tiled["samples"] - whole["samples"]).abs().mean() < 0.1
    assert (decoded - stock.VAEDecode().decode(vae, whole)[0]).abs().mean() < 0.02


@pytest.mark.slow
def test_image_to_image_keeps_what_denoise_leaves(sample, vae, picture):
    latent = stock.VAEEncode().encode(vae, picture)[0]
    change = [
        (sample(latent, denoise=denoise)["samples"] - latent["samples"]).square().mean()
        for denoise in (0.2, 0.5, 1.0)
    ]

    assert 0 < change[0] < change[1] < change[2]


def test_noise_mask_keeps_what_it_does_not_cover(sample, vae, picture):
    latent = stock.VAEEncode().encode(vae, picture)[0]
    mask = torch.zeros(1, 256, 256)
    mask[:, :, 128:] = 1
    drawn = sample(stock.SetLatentNoiseMask().set_mask(latent, mask)[0])["samples"]

    torch.testing.assert_close(drawn[..., :15], latent["samples"][..., :15], rtol=1e-4, atol=1e-4)
    assert (drawn[..., 17:] - latent["samples"][..., 17:]).abs().mean() > 0.1


def test_inpainting(sample, vae, picture):
    mask = torch.zeros(1, 256, 256)
    mask[:, 96:160, 96:160] = 1
    hole = stock.VAEEncodeForInpaint().encode(vae, picture, mask, grow_mask_by=6)[0]
    drawn = sample(hole)["samples"]
    far = torch.ones(32, 32, dtype=torch.bool)
    far[8:24, 8:24] = False

    torch.testing.assert_close(drawn[..., far], hole["samples"][..., far], rtol=1e-4, atol=1e-4)
    assert (drawn[..., 13:19, 13:19] - hole["samples"][..., 13:19, 13:19]).abs().mean() > 0.1


@pytest.mark.slow
def test_hires_pass_on_an_upscaled_latent(sample, vae):
    small = sample(empty(128))
    large = stock.LatentUpscale().upscale(small, "nearest-exact", 256, 256, "disabled")[0]
    drawn = sample(large, denoise=0.5)

    assert drawn["samples"].shape == (1, 4, 32, 32)
    assert not torch.allclose(drawn["samples"], large["samples"], atol=0.05)
    assert stock.VAEDecode().decode(vae, drawn)[0].shape == (1, 256, 256, 3)
