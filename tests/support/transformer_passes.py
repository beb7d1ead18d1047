"""One forward pass of a tiny transformer in float64, for its gradient (gradient_reference.py)."""

import comfy.model_base
import torch

from inner_guidance.tests.support import tiny_configs as configs
from inner_guidance.tests.support import tiny_flux as flux
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support import tiny_transformers as transformers
from inner_guidance.tests.support.gradient_reference import CHUNKS, random

# kind: (configuration, class of the host, model type, the blocks that are read)
FAMILIES = {
    "sd3": (transformers.SD3, comfy.model_base.SD3, "FLOW", "b0,b1"),
    "flux": (flux.FLUX, comfy.model_base.Flux, "FLUX", "b1,b3"),
    "chroma": (flux.CHROMA, comfy.model_base.Chroma, "FLUX", "b1,b3"),
    "qwen": (transformers.QWEN, comfy.model_base.QwenImage, "FLUX", "b0,b1"),
    "lumina": (transformers.LUMINA, comfy.model_base.Lumina2, "FLOW", "b0,b1"),
    "zimage": (transformers.ZIMAGE, comfy.model_base.Lumina2, "FLOW", "b0,b1"),
}
TEXT = 7


def build(kind, dtype=torch.float64, operations=None):
    """A model of its own. Rotary embeddings are in float64, too: the host's float32 hides differences."""
    unet_config, model_class, model_type, _ = FAMILIES[kind]
    config = (tiny.QwenConfig if kind == "qwen" else tiny.TransformerConfig)(unet_config | {"dtype": dtype})
    config.set_inference_dtype(dtype, None)
    config.custom_operations = operations
    model = model_class(config, tiny.ModelType[model_type], device=tiny.CPU)
    tiny.initialise(model, 0)
    for name in ("pe_embedder", "rope_embedder"):
        embedder = getattr(model.diffusion_model, name, None)
        if embedder is not None and dtype == torch.float64:
            embedder.register_forward_hook(in_float64)
    return model


def in_float64(module, args, out):
    return out.double()


def pass_inputs(kind, batch=1, dtype=torch.float64, size=(8, 6)):
    """What an APPLY_MODEL wrapper gets: the negative's chunk, then the positive's."""
    rows = CHUNKS * batch
    inputs = {
        "x": random(rows, 16, *(1,) * (kind == "qwen"), *size, dtype=dtype),
        "t": torch.full((rows,), 0.6, dtype=dtype),
        "c_concat": None,
        "c_crossattn": random(rows, TEXT, configs.CONTEXT, seed=1, dtype=dtype),
        "control": None,
        "transformer_options": {"cond_or_uncond": [1, 0], "uuids": ["n", "p"]},
    }
    if kind in ("sd3", "flux"):
        inputs["y"] = random(rows, configs.POOLED, seed=2, dtype=dtype)
    if kind == "chroma":
        inputs["guidance"] = torch.zeros(rows, dtype=dtype)
    if kind in ("lumina", "zimage"):
        inputs["num_tokens"] = TEXT
    return inputs
