"""host/depth/heads: which model a depth head fits, and the channels of the features that it reads."""

import comfy.ops
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from inner_guidance.depth_head.architectures.pixel_mlp import PixelMLP
from inner_guidance.depth_head.head import DepthHead
from inner_guidance.host.depth.heads import feature_channels, model_family, require_head_fits
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.readout_reference import SD15_CHANNELS, SDXL_CHANNELS
from inner_guidance.tests.support.tiny_configs import SD15, SDXL

pytestmark = pytest.mark.oldest_host

SMALL_FAMILY = "a UNet of 32 channels with a context of 16"


def test_channels_are_those_of_the_features():
    model = tiny.patcher("sdxl")
    unet = model.get_model_object("diffusion_model")
    seen, hooks = {}, []

    def watch(name, module):
        hooks.append(module.register_forward_hook(lambda m, a, out: seen.update({name: out.shape[1]})))

    for i, block in enumerate(unet.input_blocks):
        watch(f"i{i}", block[-1])
    watch("m0", unet.middle_block[-1])
    for i, block in enumerate(unet.output_blocks):
        watch(f"o{i}", block[-1])
        watch(f"r{i}", block[0].out_layers[-1])
    watch("time", unet.time_embed)
    tiny.sample(model, steps=1)
    for hook in hooks:
        hook.remove()

    assert feature_channels(unet) == seen


def full_size(config, channels):
    """A UNet of a family's real blocks, without memory."""
    return UNetModel(
        **config | {"model_channels": channels, "dtype": torch.float32},
        device="meta",
        operations=comfy.ops.disable_weight_init,
    )


@pytest.mark.parametrize(("config", "wanted"), [(SD15, SD15_CHANNELS), (SDXL, SDXL_CHANNELS)])
def test_a_public_head_reads_the_resblocks_of_the_real_unet(config, wanted):
    channels = feature_channels(full_size(config, 320))
    assert [channels[f"r{i}"] for i in range(len(wanted))] == list(wanted)
    assert f"r{len(wanted)}" not in channels
    assert channels["time"] == 1280


def head_of(family, taps):
    network = PixelMLP(taps, strong=tuple(taps), weak=tuple(taps)[:1]).eval()
    return DepthHead(network, family, name="made_here")


def test_a_head_for_another_model_is_refused_by_name():
    taps = {"o1": 64, "o2": 32}
    require_head_fits(head_of(SMALL_FAMILY, taps), tiny.patcher("small"))
    with pytest.raises(ValueError, match=rf"made_here .* Diffusion 1.x, but this model is {SMALL_FAMILY}"):
        require_head_fits(head_of("Stable Diffusion 1.x", taps), tiny.patcher("small"))
    with pytest.raises(ValueError, match=r"made_here reads 64 channels at o9 .* has no such block"):
        require_head_fits(head_of(SMALL_FAMILY, {"o9": 64}), tiny.patcher("small"))


def test_families_by_their_unets():
    assert model_family(tiny.patcher("small")) == SMALL_FAMILY
    assert model_family(tiny.patcher("svd")) == "Stable Video Diffusion"
    unknown = tiny.patcher("small")
    unknown.add_object_patch("diffusion_model", torch.nn.Identity())
    with pytest.raises(ValueError, match=r"features of this model, Identity: use a model that docs"):
        model_family(unknown)
