"""The keys of this pack in the host's option dictionaries, and the code that uses them.

All wrappers of the pack have the key WRAPPER_KEY, so that the pack's own passes can leave them out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import comfy.model_patcher
import comfy.patcher_extension
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider
from torch import Tensor

WRAPPER_KEY = "inner_guidance"
INNERMOST_KEY = "inner_guidance_innermost"  # of the pack's wrappers that come after all others of a pass

# Key in transformer_options during the pack's own forward passes; the value names the guidance. It lets
# caches, model function wrappers and patches of other packs tell these passes from the sampler's.
TAG = "inner_guidance_pass"

# Of model_options: a node's function that the host calls for an evaluation, in place of its own.
CALC_COND_BATCH_FUNCTION = "sampler_calc_cond_batch_function"

# Step caches of the host: they compare a step's latent with the previous step's. The pack's own passes
# evaluate another latent, so a cache would return a stale output and store theirs as the sampler's.
STEP_CACHES = ("easycache", "lazycache")


class ModelExecutor(Protocol):
    """The host's WrapperExecutor, as an APPLY_MODEL wrapper gets it: the rest of a forward pass."""

    class_obj: BaseModel

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's output (B, C, *spatial)."""
        ...


class GuiderExecutor(Protocol):
    """The host's WrapperExecutor, as an OUTER_SAMPLE or PREDICT_NOISE wrapper gets it."""

    class_obj: CFGGuider

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """A latent (B, C, *spatial): sampled, or denoised."""
        ...


def attach(
    model: ModelPatcher, outer_sample: Callable[..., Tensor], additional_models: Sequence[ModelPatcher] = ()
) -> ModelPatcher:
    """A clone of the model with an OUTER_SAMPLE wrapper around its sampling runs.

    additional_models: loaded by the host together with the model.
    """
    model = model.clone()
    if additional_models:
        others = model.get_additional_models_with_key(WRAPPER_KEY)
        model.set_additional_models(WRAPPER_KEY, [*others, *additional_models])
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, outer_sample)
    return model


def add_wrapper(options: dict[str, Any], wrapper_type: str, wrapper: Callable[..., Any]) -> None:
    """Add a wrapper under the pack's key to model_options, in place."""
    comfy.patcher_extension.add_wrapper_with_key(
        wrapper_type, WRAPPER_KEY, wrapper, options, is_model_options=True
    )


def drop_ours(wrappers: dict[str, dict[str, list[Callable[..., Any]]]]) -> None:
    """Remove the pack's wrappers and the step caches, in place: for the pack's own passes.

    wrappers: lists by wrapper type and key, of a ModelPatcher or of transformer_options.
    """
    for of_type in wrappers.values():
        for key in (WRAPPER_KEY, *STEP_CACHES):
            of_type.pop(key, None)


@contextmanager
def for_this_run(guider: Any, wrapper_type: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Add a wrapper to one run only; for use in an OUTER_SAMPLE wrapper.

    The guider gets a copy of its options with the wrapper. When the run ends, fails or is interrupted, it
    gets its own options back, so what the wrapper holds lives no longer than the run.
    """
    before = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(before)
    add_wrapper(guider.model_options, wrapper_type, wrapper)
    try:
        yield
    finally:
        guider.model_options = before
