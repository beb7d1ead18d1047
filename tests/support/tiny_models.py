"""Tiny models of the host's own classes, with random weights, and sampling with them in this process.

Everything runs inside torch.inference_mode() (conftest.py), as in the host's executor, so the weights are
inference tensors.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

import comfy.context_windows
import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models_base
import torch
from comfy.model_base import ModelType
from comfy.patcher_extension import WrappersMP

from inner_guidance.host.keys import TAG
from inner_guidance.nodes.self_attention_guidance import InnerSelfAttentionGuidance
from inner_guidance.tests.support import tiny_configs as configs
from inner_guidance.tests.support import tiny_flux as flux
from inner_guidance.tests.support import tiny_transformers as transformers
from inner_guidance.tests.support.node_defaults import execute

CPU = torch.device("cpu")


class Config(comfy.supported_models_base.BASE):
    """What the host reads of a checkpoint's configuration."""

    unet_extra_config = MappingProxyType({})
    sampling_settings = MappingProxyType({})
    latent_format = comfy.latent_formats.SD15
    memory_usage_factor = 1.0


class TransformerConfig(Config):
    """The same for transformers: 16 latent channels, flow."""

    latent_format = comfy.latent_formats.Flux
    sampling_settings = MappingProxyType({"shift": 1.15, "multiplier": 1.0})


class QwenConfig(TransformerConfig):
    """Images are videos of one frame."""

    latent_format = comfy.latent_formats.Wan21


class PixelConfig(TransformerConfig):
    """Models of pixels, which have no VAE."""

    latent_format = comfy.latent_formats.ChromaRadiance


# kind: (configuration, the host's class, what the host reads of a checkpoint)
KINDS = {
    "small": (configs.SMALL, "BaseModel", Config),
    "sd15": (configs.SD15, "BaseModel", Config),
    "sdxl": (configs.SDXL, "SDXL", Config),
    "inpaint": (configs.INPAINT, "BaseModel", Config),
    "svd": (configs.SVD, "SVD_img2vid", Config),
    "flux": (flux.FLUX, "Flux", TransformerConfig),
    "flux2": (flux.FLUX2, "Flux2", TransformerConfig),
    "chroma": (flux.CHROMA, "Chroma", TransformerConfig),
    "radiance": (flux.RADIANCE, "ChromaRadiance", PixelConfig),
    "sd3": (transformers.SD3, "SD3", TransformerConfig),
    "qwen": (transformers.QWEN, "QwenImage", QwenConfig),
    "mage": (transformers.MAGE, "MageFlow", TransformerConfig),
    "lumina": (transformers.LUMINA, "Lumina2", TransformerConfig),
    "zimage": (transformers.ZIMAGE, "Lumina2", TransformerConfig),
    "krea2": (transformers.KREA2, "Krea2", QwenConfig),
    "cosmos": (transformers.COSMOS, "CosmosPredict2", QwenConfig),
    "wan": (transformers.WAN, "WAN21", QwenConfig),
    "hidream": (transformers.HIDREAM, "HiDream", TransformerConfig),
    "hunyuan": (flux.HUNYUAN, "HunyuanImage21", TransformerConfig),
    "hunyuan15": (flux.HUNYUAN15, "HunyuanVideo15", QwenConfig),
    "ideogram": (transformers.IDEOGRAM, "Ideogram4", TransformerConfig),
    "ernie": (transformers.ERNIE, "ErnieImage", TransformerConfig),
    "pixart": (transformers.PIXART, "PixArt", Config),
    "hydit": (transformers.HYDIT, "HunyuanDiT", Config),
    "aura": (transformers.AURA, "AuraFlow", TransformerConfig),
    "kandinsky": (transformers.KANDINSKY, "Kandinsky5Image", TransformerConfig),
    "omnigen2": (transformers.OMNIGEN2, "Omnigen2", TransformerConfig),
    "boogu": (transformers.BOOGU, "Boogu", TransformerConfig),
    "lens": (transformers.LENS, "Lens", TransformerConfig),
    "joyimage": (transformers.JOYIMAGE, "JoyImage", QwenConfig),
    "pixeldit": (transformers.PIXELDIT, "PixelDiTT2I", PixelConfig),
}


def initialise(model, seed):
    """Random weights, which the host leaves uninitialised. Queries and keys are large: peaked attention."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.diffusion_model.named_parameters():
        if parameter.ndim < 2:
            norm = name.endswith(("weight", "scale"))
            parameter.fill_(0.3 if "mix_factor" in name else 2.0 if norm and "_norm" in name else float(norm))
        else:
            fan_in = math.prod(parameter.shape[1:])
            gain = 2.5 if "to_q" in name or "to_k" in name else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain / math.sqrt(fan_in))
    if isinstance(getattr(model.diffusion_model, "pos_embed", None), torch.Tensor):
        model.diffusion_model.pos_embed.copy_(
            torch.randn(model.diffusion_model.pos_embed.shape, generator=generator)
        )


@cache
def root(kind, model_type, seed, weights):
    """A model of the host's, made once, and what a loader node would hand out for it."""
    unet_config, class_name, config_class = KINDS[kind]
    config = config_class(dict(unet_config))
    config.set_inference_dtype(weights, None if weights.itemsize >= 4 else torch.float32)
    # By name: ComfyUI 0.9.2 lacks some.
    model = getattr(comfy.model_base, class_name)(config, ModelType[model_type], device=CPU)
    if kind == "inpaint":
        model.set_inpaint()
    initialise(model, seed)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def patcher(kind="small", model_type="EPS", seed=0, weights=torch.float32):
    """A tiny model: a clone, with patches of its own, of the one that all tests share.

    weights: the type in which they are stored; the model computes in float32, in float64 with float64.
    """
    return root(kind, model_type, seed, weights).clone()


def prompt(seed, tokens=7, **values):
    """A conditioning as CLIPTextEncode would give it; values such as area or start_percent go into it."""
    generator = torch.Generator().manual_seed(1000 + seed)
    pooled = torch.randn(1, configs.POOLED, generator=generator)
    embedded = torch.randn(1, tokens, configs.CONTEXT, generator=generator)
    return [[embedded, {"pooled_output": pooled} | values]]


def noise(*shape, seed=0):
    """What RandomNoise gives."""
    return torch.randn(*(shape or (1, 4, 16, 16)), generator=torch.Generator().manual_seed(seed))


def sample(model, latent=None, *, positive=None, negative=None, cfg=4.0, steps=3, sampler="euler", **kwargs):
    """The samples of the stock KSampler."""
    latent = torch.zeros(1, 4, 16, 16) if latent is None else latent
    return comfy.sample.sample(
        model,
        noise(*latent.shape),
        steps,
        cfg,
        sampler,
        kwargs.pop("scheduler", "normal"),
        positive if positive is not None else prompt(0),
        negative if negative is not None else prompt(1),
        latent,
        disable_pbar=True,
        seed=0,
        **kwargs,
    )


def sample_with(guider, latent=None, *, steps=3, sampler="euler", noise_mask=None):
    """The samples of SamplerCustomAdvanced with a guider."""
    latent = torch.zeros(1, 4, 16, 16) if latent is None else latent
    model_sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, "normal", steps)
    return guider.sample(
        noise(*latent.shape),
        latent,
        comfy.samplers.sampler_object(sampler),
        sigmas,
        denoise_mask=noise_mask,
        disable_pbar=True,
        seed=0,
    )


def first_denoised(model, **kwargs):
    """The denoised result of the first step."""
    denoised = []
    sample(
        model, steps=kwargs.pop("steps", 1), callback=lambda i, x0, *_: denoised.append(x0.double()), **kwargs
    )
    return denoised[0]


class BasicGuider(comfy.samplers.CFGGuider):
    """The guider of the host's BasicGuider node: a positive, no negative."""

    def __init__(self, model, positive):
        super().__init__(model)
        self.inner_set_conds({"positive": positive})


def result_of(node_output):
    """The model that a node of the host returns, V1 or V3."""
    return node_output[0] if isinstance(node_output, tuple) else node_output.result[0]


def guided(model, **settings):
    """The model with Self-Attention Guidance behind it, at the node's defaults except for these settings."""
    return execute(InnerSelfAttentionGuidance, model=model, **settings)[0]


def assert_steered(samples, plain):
    """Finite, and other than the plain samples by more than rounding.

    Depth-Aware Guidance evaluates a pass in two parts, which alone moves samples by up to 1 %.
    """
    assert samples.isfinite().all()
    assert (samples - plain).norm() > 0.05 * plain.norm()


def windowed(model):
    """The model with the host's context windows over the batch."""
    handler = comfy.context_windows.IndexListContextHandler(
        comfy.context_windows.get_matching_context_schedule("standard_static"),
        comfy.context_windows.get_matching_fuse_method("overlap-linear"),
        context_length=3,
        context_overlap=1,
    )
    model = model.clone()
    model.model_options["context_handler"] = handler
    return model


@dataclass
class ForwardPass:
    """What was seen of one forward pass of the model."""

    x: torch.Tensor
    sigma: float
    out: torch.Tensor
    transformer_options: dict


@dataclass
class Watch:
    """The forward passes of a model, in order."""

    passes: list[ForwardPass] = field(default_factory=list)

    def __len__(self):
        return len(self.passes)

    @property
    def labels(self):
        return [p.transformer_options["cond_or_uncond"] for p in self.passes]

    @property
    def extra(self):
        """The passes of our guidance."""
        return [p for p in self.passes if TAG in p.transformer_options]


def looks_on(function):
    """A function that leaves the rows of a pass independent, as those of this module of the host do."""
    function.__module__ = "comfy_extras.nodes_freelunch"
    return function


def watch(model):
    """Write down every forward pass of this patcher and its clones."""
    seen = Watch()

    def wrapper(executor, x, t, *args, **kwargs):
        out = executor(x, t, *args, **kwargs)
        seen.passes.append(ForwardPass(x.clone(), float(t.max()), out.clone(), args[3]))
        return out

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", looks_on(wrapper))
    return seen
