"""Features of a frozen model at chosen noise levels, outside of sampling: for training and estimation.

The host prepares a model, its LoRAs, hooks and ControlNets for a sampler, and undoes this afterwards, also
after an error. So the work runs as a sampler of this pack, which reads features as often as needed and
returns its input. A pass stops after the last block that is read.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import comfy.model_base
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..keys import TAG, WRAPPER_KEY, ModelExecutor, add_wrapper, drop_ours
from ..taps.named_features import NamedFeatures
from ..taps.uncompiled import uncompiled
from .inner_latent import InnerLatent
from .noise_levels import TIMES, sigma_at

Conditioning = list[list[Any]]
T = TypeVar("T")

# Keys that limit a condition to a part of the image or of the sampling.
PARTIAL = (
    "area",
    "mask",
    "strength",
    "start_percent",
    "end_percent",
    "clip_start_percent",  # of CLIP hooks with a schedule
    "clip_end_percent",
    "timestep_start",
    "timestep_end",
)
TOKENS = 77
TIMING_EMBEDDINGS = 256
CHANGED = (
    "The features of this model cannot be read, because a node on it evaluates the latent in tiles or "
    "changes it before the model sees it. Connect the model that goes into that node."
)
UNREAD = (
    "The features of this model cannot be read, because its tokens are in another order, as where another "
    "image stands next to the image, or because a node on it skips blocks: use another prompt or model."
)
NOT_FINITE = (
    "The model's features are not finite at this precision: start ComfyUI with --bf16-unet or --fp32-unet, "
    "or read another block."
)


class FrozenModel:
    """What the work gets to read features with. device: that of the features."""

    def __init__(self, guider: "FeatureGuider", model_options: dict[str, Any]) -> None:
        self.model = guider.inner_model
        self.conds = guider.conds["positive"]
        self.model_options = model_options
        self.device = guider.model_patcher.load_device

    def noisy(self, latents: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy latents as a sampler would have them, and their sigma (B,)."""
        x0 = self.model.process_latent_in(latents.to(self.device, torch.float32))
        sigma = sigma_at(self.model.model_sampling, time.to(self.device, torch.float32))
        return self.model.model_sampling.noise_scaling(sigma, noise.to(x0, copy=True), x0), sigma

    def features(
        self, names: Sequence[str], latents: Tensor, noise: Tensor, time: Tensor
    ) -> dict[str, Tensor]:
        """Features (B, C, h, w) by name, in the model's precision, of latents (B, ...) at time (B,).

        names: of those in depth/heads.feature_channels. Latents are as VAEs give them; noise is standard
        normal, of the same shape. Raises ValueError where they cannot be read or are not finite.
        """
        x, sigma = self.noisy(latents, noise, time)
        truncated = TruncatedPasses(names, x)
        options = comfy.model_patcher.create_model_options_clone(self.model_options)
        options["transformer_options"][TAG] = "features"
        add_wrapper(options, WrappersMP.APPLY_MODEL, truncated.apply_model)
        comfy.samplers.calc_cond_batch(self.model, [self.conds], x, sigma, options)
        truncated.require_all()
        found = {name: torch.cat([part[name] for part in truncated.found]) for name in names}
        if not all(features.isfinite().all() for features in found.values()):
            raise ValueError(NOT_FINITE)
        return found


class TruncatedPasses:
    """Reads features of one evaluation of x, which may be split into several passes of some rows each."""

    def __init__(self, names: Sequence[str], x: Tensor) -> None:
        self.names = names
        self.x = x
        self.rows = 0
        self.found: list[dict[str, Tensor]] = []

    def apply_model(
        self,
        executor: ModelExecutor,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None,
        c_crossattn: Tensor | None,
        control: dict[str, Any] | None,
        transformer_options: dict[str, Any],
        **kwargs: Any,
    ) -> Tensor:
        """APPLY_MODEL wrapper. Its output is meaningless, because the pass stops early.

        Raises ValueError if the rows of the pass are not the next ones of the batch or change within it,
        or if a block could not be read.
        """
        expected = self.x[self.rows : self.rows + len(x)].to(x)
        if not torch.equal(x, expected):
            raise ValueError(CHANGED)
        self.rows += len(x)
        features, inner = NamedFeatures(executor.class_obj.diffusion_model, self.names), InnerLatent()
        options = inner.options(features.options(transformer_options))
        with uncompiled(), features.reading(x, c_crossattn, stop=True):
            executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        if inner.changed:
            raise ValueError(CHANGED)
        if not features.complete:
            raise ValueError(UNREAD)
        self.found.append(features.found)
        return torch.zeros_like(x)

    def require_all(self) -> None:
        """Raises ValueError if rows of the batch were not evaluated."""
        if self.rows < len(self.x):
            raise ValueError(CHANGED)


class FeatureGuider(comfy.samplers.CFGGuider):
    """Holds one prompt for the whole image."""

    def set_prompt(self, positive: Conditioning | None) -> None:
        """The first prompt of a conditioning, or zeros."""
        tensor, values = positive[0] if positive else no_prompt(self.model_patcher.model)
        whole = {name: value for name, value in values.items() if name not in PARTIAL}
        self.inner_set_conds({"positive": [[tensor, whole]]})


class FeatureSampler(comfy.samplers.Sampler):
    """Does the work where the host expects sampling."""

    def __init__(self, work: Callable[[FrozenModel], T]) -> None:
        self.work = work
        self.result: Any = None

    def sample(  # type: ignore[override]  # the host's base class declares no arguments
        self,
        model_wrap: FeatureGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The return value is not used."""
        self.result = self.work(FrozenModel(model_wrap, extra_args["model_options"]))
        return noise


def with_frozen_model(
    model: ModelPatcher,
    positive: Conditioning | None,
    shape: Sequence[int],
    work: Callable[[FrozenModel], T],
    others: Sequence[ModelPatcher] = (),
) -> T:
    """Run `work` while the model is loaded and prepared; returns its result.

    positive: one prompt, for the whole image; None is zeros. shape: of the largest latent batch, for the
    host's estimate of memory. others: models to be loaded as well. Guidance of this pack, recorders and step
    caches on the model are left out; all other patches stay.
    """
    model = model.clone()
    drop_ours(model.wrappers)
    model.remove_additional_models("multigpu")  # one prompt is nothing that several GPUs could share
    model.set_additional_models(WRAPPER_KEY, list(others))
    guider = FeatureGuider(model)
    guider.set_prompt(positive)
    sampler = FeatureSampler(work)
    latent = torch.zeros(shape)
    guider.sample(latent, latent, sampler, torch.zeros(1), disable_pbar=True, seed=0)
    return sampler.result


def require_features(
    model: ModelPatcher, positive: Conditioning | None, names: Sequence[str], latent: Tensor
) -> None:
    """Raises ValueError if these features cannot be read: a pass on the latent (1, ...) of an image tells."""
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([TIMES / 2])
    with_frozen_model(model, positive, latent.shape, lambda unet: unet.features(names, latent, noise, time))


def require_prompt(model: ModelPatcher, positive: Conditioning | None) -> None:
    """Raises ValueError where a model needs a prompt and there is none: zeros serve for UNets only."""
    diffusion_model = model.get_model_object("diffusion_model")
    if not positive and not hasattr(diffusion_model, "input_blocks"):
        raise ValueError(
            f"This model, {type(diffusion_model).__name__}, cannot be evaluated without a prompt: connect "
            "one to positive, usually an empty one."
        )


def no_prompt(model: comfy.model_base.BaseModel) -> list[Any]:
    """A condition of zeros, used without a prompt: there is no text encoder here."""
    config = model.model_config.unet_config
    sizes = 5 if isinstance(model, comfy.model_base.SDXLRefiner) else 6
    pooled = max(0, model.adm_channels - sizes * TIMING_EMBEDDINGS)
    return [torch.zeros(1, TOKENS, config["context_dim"]), {"pooled_output": torch.zeros(1, pooled)}]
