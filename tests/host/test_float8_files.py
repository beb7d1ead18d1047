"""Files of a transformer in float8, by the host's own Load Diffusion Model."""

from types import SimpleNamespace

import comfy.ldm.flux.model
import comfy.ops
import folder_paths
import pytest
import torch
from safetensors.torch import save_file

import nodes as stock
from inner_guidance.depth_head.head import DepthHead
from inner_guidance.host.depth.head_training import new_network
from inner_guidance.host.depth.heads import HostedDepthHead, model_family
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.tiny_flux import FLUX

FLOAT8 = torch.float8_e4m3fn
# The smallest that the host takes for a Flux: it reads the other sizes from the file.
OF_FILE = {"hidden_size": 128, "num_heads": 1, "mlp_ratio": 4.0, "axes_dim": [16, 56, 56]}
LATENT = torch.zeros(1, 16, 16, 16)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """float8.safetensors, whose matrices are in float8, and float32.safetensors with the same numbers."""
    folder = tmp_path_factory.mktemp("diffusion_models")
    folder_paths.add_model_folder_path("diffusion_models", str(folder))
    with torch.inference_mode():
        network = comfy.ldm.flux.model.Flux(**FLUX | OF_FILE, operations=comfy.ops.disable_weight_init)
        tiny.initialise(SimpleNamespace(diffusion_model=network), seed=0)
        weights = {name: t.to(FLOAT8) if t.ndim == 2 else t for name, t in network.state_dict().items()}
        save_file(weights, folder / "float8.safetensors")
        save_file({name: t.float() for name, t in weights.items()}, folder / "float32.safetensors")


def load(name, weight_dtype):
    return stock.UNETLoader().load_unet(f"{name}.safetensors", weight_dtype)[0]


def depth_guided(model):
    network = new_network(model, "pixel_mlp", "auto", "auto", seed=0).requires_grad_(False).eval()
    return depth.depth_guided(
        model, depth_head=HostedDepthHead.of(DepthHead(network, model_family(model), name="head_of_test"))
    )


@pytest.mark.parametrize("guide", [tiny.guided, depth_guided], ids=["SAG", "DAG"])
def test_guidance_is_that_of_the_same_numbers_in_float32(files, guide):
    model, same = load("float32", "fp8_e4m3fn"), load("float32", "default")
    assert model.model.diffusion_model.double_blocks[0].img_attn.qkv.weight.dtype == FLOAT8
    assert same.model.diffusion_model.double_blocks[0].img_attn.qkv.weight.dtype == torch.float32

    guided, expected = (tiny.sample(guide(m), LATENT) for m in (model, same))

    torch.testing.assert_close(guided, expected, rtol=1e-3, atol=1e-3)
    tiny.assert_steered(guided, tiny.sample(model, LATENT))
