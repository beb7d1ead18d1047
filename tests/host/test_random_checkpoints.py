"""benchmarks/random_checkpoints.py: the layouts of the published files, and the files themselves."""

import math

import comfy.model_detection
import comfy.supported_models
import pytest
import torch
from safetensors.torch import load_file

from inner_guidance.benchmarks.models import SD15, SDXL
from inner_guidance.benchmarks.random_checkpoints import checkpoint, depth_anything, write

PREFIX = "model.diffusion_model."


def on_meta(shapes):
    return {name: torch.empty(shape, dtype=torch.half, device="meta") for name, shape in shapes.items()}


# Parameters of the published UNet, text encoders and VAE.
@pytest.mark.parametrize(
    ("config", "parameters", "names"),
    [
        (
            comfy.supported_models.SD15(dict(SD15)),
            859_520_964 + 123_060_480 + 83_653_863,
            {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768)},
        ),
        (
            comfy.supported_models.SDXL(dict(SDXL)),
            2_567_463_684 + 123_060_480 + 694_659_841 + 83_653_863,
            {
                "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
                "conditioner.embedders.1.model.text_projection": (1280, 1280),
            },
        ),
    ],
    ids=["SD 1.5", "SDXL"],
)
def test_a_checkpoint_has_the_published_weights_and_is_recognised(config, parameters, names):
    shapes = checkpoint(config)

    assert sum(map(math.prod, shapes.values())) == parameters
    assert names.items() <= shapes.items()
    assert shapes["first_stage_model.decoder.conv_in.weight"] == (512, 4, 3, 3)
    found = comfy.model_detection.model_config_from_unet(on_meta(shapes), PREFIX)
    assert type(found) is type(config)


def test_depth_anything_is_recognised_as_mono_large():
    found = comfy.model_detection.detect_unet_config(on_meta(depth_anything()), "")

    assert found["image_model"] == "DepthAnything3"
    assert found["backbone_name"] == "vitl"
    assert found["head_type"] == "dpt"
    assert found["head_use_sky_head"]


def test_a_file_has_bounded_weights(tmp_path):
    path = tmp_path / "models" / "small.safetensors"

    write(path, {"norm.weight": (4,), "norm.bias": (4,), "conv.weight": (64, 16, 3, 3), "scale": ()})

    weights = load_file(path)
    assert [*path.parent.iterdir()] == [path]
    assert {name: w.dtype for name, w in weights.items()} == dict.fromkeys(weights, torch.half)
    torch.testing.assert_close(weights["norm.weight"], torch.ones(4).half())
    torch.testing.assert_close(weights["norm.bias"], torch.zeros(4).half())
    assert weights["scale"].shape == ()
    # Each output of the convolution has the magnitude of its inputs.
    assert float(weights["conv.weight"].float().std()) == pytest.approx(1 / 12, rel=0.05)
