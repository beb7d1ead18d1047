"""The feature tap on the host's own models, each feature against an independent way to see it."""

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from inner_guidance.host.taps.blocks import feature_blocks, layer_names, parse_blocks
from inner_guidance.host.taps.feature_tap import FeatureTap
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.tiny_configs import CONTEXT

pytestmark = pytest.mark.oldest_host

# kind: (model type, latent)
KINDS = {
    "sd15": ("EPS", (2, 4, 16, 24)),
    "sdxl": ("EPS", (2, 4, 16, 24)),
    "svd": ("V_PREDICTION_EDM", (4, 4, 8, 8)),
    "sd3": ("FLOW", (2, 16, 16, 12)),
    "flux": ("FLUX", (2, 16, 15, 12)),
    "chroma": ("FLUX", (2, 16, 16, 12)),
    "qwen": ("FLUX", (2, 16, 1, 16, 12)),
    "lumina": ("FLOW", (2, 16, 16, 12)),
    "zimage": ("FLOW", (2, 16, 16, 12)),
}


def tapped(kind, blocks, *, stop=False, attach=lambda model: None, **kwargs):
    """One step: the features of the first pass by name, cloned, and the passes."""
    model_type, shape = KINDS[kind]
    model = tiny.patcher(kind, model_type)
    attach(model)
    seen = tiny.watch(model)
    available = feature_blocks(model.model.diffusion_model)
    names = layer_names(available)
    layers = parse_blocks(blocks, available)
    features = {}

    def read(layer, feature):
        features.setdefault(names[layer], feature.clone())

    def wrapper(executor, x, t, c_concat, c_crossattn, *args, **kwargs):
        tap = FeatureTap(layers, read, stop=stop)
        with tap.reading(executor.class_obj.diffusion_model, x, c_crossattn):
            return executor(x, t, c_concat, c_crossattn, *args, **kwargs)
        return torch.zeros_like(x)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", wrapper)
    tiny.sample(model, torch.zeros(*shape), steps=1, **kwargs)
    return features, seen, model.model.diffusion_model


def names_of(kind, letter):
    model = tiny.patcher(kind, KINDS[kind][0]).model.diffusion_model
    return [name for name in feature_blocks(model) if name[0] == letter]


def everything(kind):
    return ",".join(feature_blocks(tiny.patcher(kind, KINDS[kind][0]).model.diffusion_model))


@pytest.mark.parametrize("kind", KINDS)
def test_the_pass_is_bit_identical_and_no_hook_is_left(kind):
    _, seen, diffusion_model = tapped(kind, everything(kind))
    plain = tiny.patcher(kind, KINDS[kind][0])
    seen_plain = tiny.watch(plain)
    tiny.sample(plain, torch.zeros(*KINDS[kind][1]), steps=1)

    assert torch.equal(seen.passes[0].out, seen_plain.passes[0].out)
    assert not any(module._forward_hooks for module in diffusion_model.modules())


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_blocks_of_a_unet_are_what_the_hosts_patches_see(kind):
    """input_block_patch sees every input block, output_block_patch what the block before has made."""
    inputs, before_output = [], []

    def attach(model):
        model.set_model_input_block_patch(lambda h, options: inputs.append(h.clone()) or h)
        model.set_model_output_block_patch(
            lambda h, hsp, options: before_output.append(h.clone()) or (h, hsp)
        )

    features, _, _ = tapped(kind, everything(kind), attach=attach)

    assert list(features) == list(everything(kind).split(","))  # in the order of the forward pass
    for i, seen in enumerate(inputs):
        assert torch.equal(features[f"i{i}"], seen)
    assert torch.equal(features["m0"], before_output[0])
    for i, seen in enumerate(before_output[1:]):
        assert torch.equal(features[f"o{i}"], seen)
    assert len(names_of(kind, "o")) == len(names_of(kind, "r")) == len(before_output)


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "svd"])
def test_the_last_output_block_is_what_the_model_ends_with(kind):
    features, seen, diffusion_model = tapped(kind, names_of(kind, "o")[-1])
    one = seen.passes[0]
    model = tiny.patcher(kind, KINDS[kind][0]).model

    (last,) = features.values()
    model_output = diffusion_model.out(last)
    sigma = torch.full((len(one.x),), one.sigma)
    expected = model.model_sampling.calculate_denoised(sigma, model_output, one.x)

    torch.testing.assert_close(one.out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_the_residual_branch_is_the_block_without_its_shortcut(kind):
    """Of output blocks that are a ResBlock alone: output minus the shortcut of [h, skip]."""
    joined = []

    def attach(model):
        model.set_model_output_block_patch(
            lambda h, hsp, options: joined.append(torch.cat([h, hsp], 1)) or (h, hsp)
        )

    features, _, diffusion_model = tapped(kind, everything(kind), attach=attach)

    alone = [i for i, block in enumerate(diffusion_model.output_blocks) if len(block) == 1]
    assert alone
    for i in alone:
        shortcut = diffusion_model.output_blocks[i][0].skip_connection(joined[i])
        torch.testing.assert_close(features[f"r{i}"], features[f"o{i}"] - shortcut, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(features[f"r{i}"], features[f"o{i}"], rtol=0.1, atol=0.1)


def test_features_of_sdxls_residual_branches_have_the_channels_of_the_blocks():
    features, _, diffusion_model = tapped("sdxl", everything("sdxl"))

    for i, block in enumerate(diffusion_model.output_blocks):
        assert features[f"r{i}"].shape[1] == block[0].out_channels
        assert features[f"r{i}"].shape[0] == 4  # two images, two branches


@pytest.mark.parametrize("kind", ["sd3", "flux", "chroma", "qwen", "lumina", "zimage"])
def test_blocks_of_a_joint_model_are_the_image_tokens(kind):
    """What the model makes of the last block's tokens, with its own last layers, is its output."""
    last_name = names_of(kind, "b")[-1]
    final = {}
    attribute = {"qwen": "norm_out"}.get(kind, "final_layer")
    module = getattr(tiny.patcher(kind, KINDS[kind][0]).model.diffusion_model, attribute)
    handle = module.register_forward_pre_hook(lambda _m, args: final.update(x=args[0].clone()))
    try:
        features, _, _ = tapped(kind, everything(kind).replace(",m0", ""))
    finally:
        handle.remove()

    assert list(features) == names_of(kind, "b")
    batch, _, *spatial, height, width = KINDS[kind][1]
    grid = (*spatial, -(-height // 2), -(-width // 2))
    for feature in features.values():
        assert feature.shape == (2 * batch, final["x"].shape[-1], *grid)
    tokens = final["x"]
    if kind in ("lumina", "zimage"):  # the text comes first; Z-Image fills both up to 32
        start = 7 if kind == "lumina" else 32
        tokens = tokens[:, start : start + 48]
    expected = tokens.transpose(1, 2).reshape(features[last_name].shape)
    torch.testing.assert_close(features[last_name], expected, rtol=0, atol=0)


def test_half_depth_is_m0_in_joint_models():
    model = tiny.patcher("flux", "FLUX").model.diffusion_model
    available = feature_blocks(model)

    assert parse_blocks("m0", available) == available["b2"]
    assert layer_names(available)[available["m0"][0]] == "b2"


@pytest.mark.parametrize("kind", ["flux", "qwen"])
def test_tokens_of_reference_images_are_left_out(kind):
    shape = KINDS[kind][1]
    reference = tiny.noise(1, *shape[1:-2], 8, 8, seed=4)
    prompts = {
        "positive": tiny.prompt(0, reference_latents=[reference]),
        "negative": tiny.prompt(1, reference_latents=[reference]),
    }

    with_reference, _, _ = tapped(kind, "b0-b2", **prompts)
    without, _, _ = tapped(kind, "b0-b2")

    for name, feature in with_reference.items():
        assert feature.shape == without[name].shape
        assert not torch.equal(feature, without[name])


@pytest.mark.parametrize(
    ("kind", "blocks"), [("sd15", "i3,o4"), ("sdxl", "r2"), ("flux", "b3"), ("sd3", "b0")]
)
def test_stop_ends_the_pass_behind_the_last_layer(kind, blocks):
    computed = []
    diffusion_model = tiny.patcher(kind, KINDS[kind][0]).model.diffusion_model
    handles = [
        module.register_forward_hook(lambda *_, name=name: computed.append(name))
        for name, module in diffusion_model.named_modules()
        if name
    ]
    try:
        whole, _, _ = tapped(kind, blocks)
        calls, computed[:] = list(computed), []
        stopped, _, _ = tapped(kind, blocks, stop=True)
    finally:
        for handle in handles:
            handle.remove()

    assert 0 < len(computed) < len(calls)
    assert calls[: len(computed)] == computed
    assert stopped.keys() == whole.keys()
    assert all(torch.equal(stopped[name], whole[name]) for name in whole)


def test_hooks_are_removed_when_the_pass_fails():
    def attach(model):
        def failing(h, hsp, options):
            raise RuntimeError("here")

        model.set_model_output_block_patch(failing)

    with pytest.raises(RuntimeError, match="here"):
        tapped("sd15", "m0,o3", attach=attach)
    modules = tiny.patcher("sd15").model.diffusion_model.modules()
    assert not any(module._forward_hooks for module in modules)


def test_a_gradient_of_a_feature_reaches_the_latent():
    """One pass with gradients, stopped, against a difference quotient; in float64."""
    diffusion_model = tiny.patcher().model.diffusion_model
    with torch.inference_mode(False):
        normal = {name: p.double() for name, p in diffusion_model.named_parameters()}
        x, context = tiny.noise(1, 4, 8, 8).double(), tiny.noise(1, 7, CONTEXT, seed=2).double()
        layers = parse_blocks("o1", feature_blocks(diffusion_model))

        def energy(x):
            read = {}
            with FeatureTap(layers, read.__setitem__, stop=True).reading(diffusion_model, x, context):
                torch.func.functional_call(diffusion_model, normal, (x, torch.ones(1), context))
            return read[layers[0]].square().mean()

        with torch.enable_grad():
            x.requires_grad_(True)
            (gradient,) = torch.autograd.grad(energy(x), x)
        direction = tiny.noise(1, 4, 8, 8, seed=5).double()
        with torch.no_grad():
            difference = (energy(x + 1e-5 * direction) - energy(x - 1e-5 * direction)) / 2e-5

    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("u1", r"no block u1. It has i0-i11, m0, r0-r11, o0-o11\."),
        ("o12", r"no block o12"),
        ("decoder", r"'decoder' is not a block name. .* ranges such as o0-o2"),
    ],
)
def test_wrong_names_say_what_there_is(blocks, message):
    with pytest.raises(ValueError, match=message):
        parse_blocks(blocks, feature_blocks(tiny.patcher("sd15").model.diffusion_model))


def test_model_of_another_kind():
    with pytest.raises(ValueError, match=r"features of this model, Linear, cannot be read: use"):
        feature_blocks(torch.nn.Linear(2, 2))
