"""Features outside of sampling: the right blocks at the right noise, and no more of the pass than needed."""

from functools import partial

import comfy.model_management
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.patcher_extension import WrappersMP

from inner_guidance.host.depth.heads import feature_channels
from inner_guidance.host.sampling.frozen_model import with_frozen_model
from inner_guidance.host.sampling.noise_levels import sigma_at, time_at
from inner_guidance.tests.support import tiny_models as tiny

pytestmark = pytest.mark.oldest_host

LATENT = (2, 4, 16, 24)
TIME = torch.tensor([40.0, 650.0])


def latents(seed=3):
    return tiny.noise(*LATENT, seed=seed)


def read(model, names, positive=None, time=TIME):
    return with_frozen_model(
        model,
        positive,
        LATENT,
        lambda unet: unet.features(names, latents(), tiny.noise(*LATENT), time),
    )


def off_by(features, expected):
    """Relative to their size: the tiny model's peaked attention makes rounding large in single places."""
    assert features.shape == expected.shape
    return (features - expected).norm() / expected.norm()


def hooked(model, modules, x, t, context, y=None):
    """Outputs of modules during a forward pass of the bare UNet."""
    unet = model.get_model_object("diffusion_model")
    found, hooks = {}, []
    for name, module in modules.items():
        keep = partial(found.__setitem__, name)
        hooks.append(module.register_forward_hook(lambda m, a, out, keep=keep: keep(out.clone())))
    unet(x, t, context=context, y=y)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION"])
def test_features_are_those_of_the_noisy_latent(kind):
    model = tiny.patcher("small", kind)
    unet = model.get_model_object("diffusion_model")
    modules = {f"o{i}": block[-1] for i, block in enumerate(unet.output_blocks)}
    modules |= {f"r{i}": block[0].out_layers[-1] for i, block in enumerate(unet.output_blocks)}
    modules |= {"i1": unet.input_blocks[1][-1], "m0": unet.middle_block[-1], "time": unet.time_embed}
    positive = tiny.prompt(0)

    found = read(model, list(modules), positive)

    # sqrt(abar) x0 + sqrt(1 - abar) e: what the UNet of a variance-preserving model is given
    abar = 1 / (1 + model.get_model_object("model_sampling").sigmas[TIME.long()].double() ** 2)
    abar = abar.view(-1, 1, 1, 1)
    x0 = 0.18215 * latents().double()
    x = (abar.sqrt() * x0 + (1 - abar).sqrt() * tiny.noise(*LATENT).double()).float()
    expected = hooked(model, modules, x, TIME, positive[0][0].repeat(2, 1, 1))
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert off_by(found[name], value) < 1e-3, name
    assert {name: f.shape[1] for name, f in found.items()}.items() <= feature_channels(unet).items()


def test_sdxl_gets_its_time_without_what_is_added_to_it():
    model = tiny.patcher("sdxl")
    unet = model.get_model_object("diffusion_model")
    found = read(model, ["time", "r1"])
    expected = unet.time_embed(timestep_embedding(TIME, unet.model_channels))
    torch.testing.assert_close(found["time"], expected, rtol=1e-4, atol=1e-4)
    assert found["r1"].isfinite().all()


def computed_blocks(model, names):
    unet = model.get_model_object("diffusion_model")
    computed = []
    hooks = [block[0].register_forward_hook(lambda *_: computed.append(1)) for block in unet.output_blocks]
    found = read(model, names)
    for hook in hooks:
        hook.remove()
    assert set(found) == set(names)
    return len(computed)


def test_the_pass_stops_behind_the_last_block():
    model = tiny.patcher("sd15")
    assert computed_blocks(model, ["o2", "o0"]) == 3
    assert computed_blocks(model, ["time", "r4"]) == 4  # the fifth has not put out anything
    assert computed_blocks(model, ["m0"]) == 0


def test_sampling_afterwards_is_as_before():
    model = tiny.patcher()
    before = tiny.sample(model)
    read(model, ["o1", "time"])
    assert torch.equal(tiny.sample(model), before)


def test_rows_that_a_function_wrapper_splits_come_back_together():
    model = tiny.patcher()
    whole = read(model, ["o1", "time"], tiny.prompt(0))
    model = model.clone()

    def one_by_one(apply_model, args):
        x, t, c = args["input"], args["timestep"], args["c"]
        rows = [
            {k: v[i : i + 1] if isinstance(v, torch.Tensor) and len(v) == len(x) else v for k, v in c.items()}
            for i in range(len(x))
        ]
        return torch.cat([apply_model(x[i : i + 1], t[i : i + 1], **rows[i]) for i in range(len(x))])

    model.set_model_unet_function_wrapper(one_by_one)
    split = read(model, ["o1", "time"], tiny.prompt(0))
    for name, f in whole.items():
        assert off_by(split[name], f) < 1e-3, name


def test_patches_stay_and_our_guidance_does_not_run():
    plain = read(tiny.patcher(), ["o1"])["o1"]
    patched = tiny.patcher()
    patched.set_model_output_block_patch(lambda h, hsp, options: (2 * h, hsp))
    assert not torch.allclose(read(patched, ["o1"])["o1"], plain, atol=1e-2)
    guided = tiny.guided(tiny.patcher(), branch="negative")
    assert torch.equal(read(guided, ["o1"])["o1"], plain)


def test_a_regional_prompt_counts_for_the_whole_image():
    model = tiny.patcher()
    mask = torch.zeros(1, *LATENT[2:])
    regional = tiny.prompt(0, area=(2, 2, 0, 0), mask=mask, start_percent=0.9, end_percent=1.0, strength=0.1)
    assert torch.equal(read(model, ["o1"], regional)["o1"], read(model, ["o1"], tiny.prompt(0))["o1"])


def test_a_prompt_of_scheduled_clip_hooks_counts_for_every_noise_level():
    model = tiny.patcher()
    scheduled = tiny.prompt(0, clip_start_percent=0.4, clip_end_percent=0.5)
    assert torch.equal(read(model, ["o1"], scheduled)["o1"], read(model, ["o1"], tiny.prompt(0))["o1"])


def test_an_error_in_the_work_leaves_the_model_usable():
    model = tiny.patcher()

    def work(unet):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        with_frozen_model(model, None, LATENT, work)
    assert read(model, ["o1"])["o1"].isfinite().all()


def test_models_beside_are_loaded():
    other, loaded = tiny.patcher("small", seed=7), []

    def work(unet):
        loaded.extend(m.model for m in comfy.model_management.current_loaded_models)

    with_frozen_model(tiny.patcher(), None, LATENT, work, [other])
    assert any(model is other for model in loaded)


def test_our_passes_are_tagged():
    model = tiny.patcher()
    seen = []

    def wrapper(executor, *args, **kwargs):
        seen.append(args[5].get("inner_guidance_pass"))
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", wrapper)
    read(model, ["o1"])
    assert seen == ["features"]


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "EDM", "V_PREDICTION_EDM", "FLOW", "FLUX"])
def test_time_and_sigma_are_inverse(kind):
    model_sampling = tiny.patcher("small", kind).get_model_object("model_sampling")
    time = torch.tensor([1.0, 50.0, 200.0, 500.0, 799.0])
    sigma = sigma_at(model_sampling, time)
    assert (sigma.diff() > 0).all()
    torch.testing.assert_close(time_at(model_sampling, sigma), time, rtol=1e-4, atol=1e-2)


def test_time_without_timesteps_is_the_share_of_noise():
    flow = tiny.patcher("small", "FLOW").get_model_object("model_sampling")
    assert sigma_at(flow, torch.tensor([300.0])).item() == pytest.approx(0.3)
    edm = tiny.patcher("small", "EDM").get_model_object("model_sampling")
    assert sigma_at(edm, torch.tensor([500.0])).item() == pytest.approx(edm.sigma_data)


def test_time_between_timesteps():
    model_sampling = tiny.patcher().get_model_object("model_sampling")
    low, between, high = sigma_at(model_sampling, torch.tensor([400.0, 400.5, 401.0]))
    assert low < between < high
