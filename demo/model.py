"""The demo models for the host: MODEL, CLIP and VAE from their safetensors files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import comfy.model_management
import comfy.sd
import comfy.supported_models_base
import comfy.utils
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .autoencoder import DemoVAE
from .latent_format import DemoLatent
from .text import CONTEXT_DIM, SceneTextEncoder, SceneTokenizer
from .transformer import TRANSFORMER_CONFIG, DemoTransformer

WEIGHTS = Path(__file__).parent / "weights"
UNET_FILE = "unet.safetensors"
TRANSFORMER_FILE = "transformer.safetensors"
TEXT_FILE = "text_encoder.safetensors"
AUTOENCODER_FILE = "autoencoder.safetensors"
DEPTH_HEAD_FILE = "depth_head.safetensors"
TRANSFORMER_DEPTH_HEAD_FILE = "transformer_depth_head.safetensors"
LATENT_HEAD_FILE = "latent_head.safetensors"
DEPTH_PRIOR_FILE = "depth_prior.safetensors"
CLASSIFIER_HEAD_FILE = "classifier_head.safetensors"
TRANSFORMER_CLASSIFIER_HEAD_FILE = "transformer_classifier_head.safetensors"


class DemoFamily(NamedTuple):
    """The files of one of the two demo models and of the heads that read its features; its scheduler."""

    model: str
    depth_head: str
    classifier_head: str
    scheduler: str


UNET = "UNet"
FAMILIES = {
    UNET: DemoFamily(UNET_FILE, DEPTH_HEAD_FILE, CLASSIFIER_HEAD_FILE, "karras"),
    "transformer": DemoFamily(
        TRANSFORMER_FILE, TRANSFORMER_DEPTH_HEAD_FILE, TRANSFORMER_CLASSIFIER_HEAD_FILE, "simple"
    ),
}

UNET_CONFIG = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 2, 2],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [0, 1, 1],
    "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": CONTEXT_DIM,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "use_temporal_attention": False,
    "adm_in_channels": None,
    "legacy": False,
}

UNET_EXTRA_CONFIG = {"num_heads": -1, "num_head_channels": 32}


class DemoWorld(comfy.supported_models_base.BASE):
    """The host's model description: a v-prediction UNet on Stable Diffusion's beta schedule."""

    unet_extra_config = UNET_EXTRA_CONFIG
    latent_format = DemoLatent
    memory_usage_factor = 1.0

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> ModelType:
        """The parametrisation of the UNet."""
        return ModelType.V_PREDICTION


def load_all(folder: Path, family: str = UNET) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE from the three files in a folder."""
    model = load_model(folder / FAMILIES[family].model)
    return model, load_clip(folder / TEXT_FILE), load_vae(folder / AUTOENCODER_FILE)


def load_model(path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """UNet or transformer, by the file's name, under the host's memory management.

    The host chooses its precision for this device.

    The host calls it again, through `cached_patcher_init`, if it needs weights that are not shared: for
    training, and for a second GPU. It may then ask for a patcher without dynamic memory; this one never has
    any.
    """
    state_dict = read_weights(path)
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    parameters = comfy.utils.calculate_parameters(state_dict)
    transformer = path.name == TRANSFORMER_FILE
    config = DemoTransformer(TRANSFORMER_CONFIG) if transformer else DemoWorld(UNET_CONFIG)
    dtype = comfy.model_management.unet_dtype(
        model_params=parameters, supported_dtypes=config.supported_inference_dtypes
    )
    cast = comfy.model_management.unet_manual_cast(dtype, load_device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, cast)
    model = config.get_model(state_dict, "").to(offload_device)
    model.load_model_weights(state_dict, "")
    patcher = ModelPatcher(model, load_device=load_device, offload_device=offload_device)
    patcher.cached_patcher_init = (load_model, (path,))
    return patcher


def load_clip(path: Path, **memory: bool) -> comfy.sd.CLIP:
    """The text encoder as the host's own CLIP, so that every node with a CLIP input takes it.

    memory: keywords of the host when it loads again; hosts since 0.16 pass `disable_dynamic`.
    """
    state_dict = read_weights(path)
    clip = comfy.sd.CLIP(
        SimpleNamespace(params={}, clip=SceneTextEncoder, tokenizer=SceneTokenizer),
        parameters=comfy.utils.calculate_parameters(state_dict),
        state_dict=state_dict,
        **memory,
    )
    clip.patcher.cached_patcher_init = (_load_clip_patcher, (path,))
    return clip


def _load_clip_patcher(path: Path, **memory: bool) -> ModelPatcher:
    return load_clip(path, **memory).patcher


def load_vae(path: Path) -> comfy.sd.VAE:
    """The autoencoder as the host's VAE."""
    vae = DemoVAE(read_weights(path))
    vae.patcher.cached_patcher_init = (_load_vae_patcher, (path,))
    return vae


def _load_vae_patcher(path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    return load_vae(path).patcher


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises ValueError for a file that is missing or damaged; the sentence says how to get it back.
    """
    restore = f"Run `git checkout -- demo/weights/{path.name}` in the pack's folder, or reinstall the pack."
    if not path.is_file():
        raise ValueError(f"The demo model's file {path.name} is missing. {restore}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"The demo model's file {path.name} is damaged ({error}). {restore}") from error


def write_weights(path: Path, state_dict: dict[str, Tensor]) -> None:
    """Writes tensors in half precision. An interruption leaves the previous file intact."""
    unfinished = path.with_suffix(".unfinished")
    save_file({name: weight.half().contiguous() for name, weight in state_dict.items()}, unfinished)
    unfinished.replace(path)


def export_weights(folder: Path, diffusion: dict[str, Tensor], autoencoder: dict[str, Tensor]) -> None:
    """Writes the three files of UNet, text encoder and autoencoder."""
    write_weights(folder / UNET_FILE, _below("unet.", diffusion))
    write_weights(folder / TEXT_FILE, _below("text.", diffusion))
    write_weights(folder / AUTOENCODER_FILE, autoencoder)


def restore_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights that `export_weights` wrote, in single precision: diffusion, autoencoder."""
    unet, text = read_weights(folder / UNET_FILE), read_weights(folder / TEXT_FILE)
    diffusion = {f"unet.{name}": w.float() for name, w in unet.items()}
    diffusion |= {f"text.{name}": w.float() for name, w in text.items()}
    return diffusion, {name: w.float() for name, w in read_weights(folder / AUTOENCODER_FILE).items()}


def export_transformer(folder: Path, flow: dict[str, Tensor]) -> None:
    """Writes the transformer's file."""
    write_weights(folder / TRANSFORMER_FILE, _below("transformer.", flow))


def restore_transformer(folder: Path) -> dict[str, Tensor]:
    """The weights that `export_transformer` wrote, in single precision, with the text encoder."""
    weights = {
        f"transformer.{name}": w.float() for name, w in read_weights(folder / TRANSFORMER_FILE).items()
    }
    return weights | {f"text.{name}": w.float() for name, w in read_weights(folder / TEXT_FILE).items()}


def _below(prefix: str, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): w for name, w in state_dict.items() if name.startswith(prefix)}
