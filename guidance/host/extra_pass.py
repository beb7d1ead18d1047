"""Our own evaluations of the model, beside the one that the sampler asked for."""

from typing import Any

import comfy.model_patcher
import comfy.samplers
from torch import Tensor

from .recording import WRAPPER_KEY

# The key in transformer_options, in every forward pass of ours, of the guidance that it belongs to. For
# caches, model function wrappers and patches that must tell our passes from the sampler's.
TAG = "inner_guidance_pass"

# Wrappers of the host that compare a step's latent with the last step's. Ours is another latent: they would
# answer with a stale output, and remember it as the sampler's.
STEP_CACHES = ("easycache", "lazycache")


def extra_pass(
    guidance: str,
    model: Any,
    conds: list[dict[str, Any]],
    label: int,
    x: Tensor,
    sigma: Tensor,
    model_options: dict[str, Any],
) -> Tensor:
    """D(x) for one list of conditions, evaluated as the host would: areas, hooks, ControlNets, windows.

    label: the number of the list in the sampler's own evaluation (1 for the negative), which patches find in
    `cond_or_uncond`. ControlNets run again on this x, so nothing of the sampler's pass is used up.
    """
    options = comfy.model_patcher.create_model_options_clone(model_options)
    transformer_options = options["transformer_options"]
    transformer_options[TAG] = guidance
    for of_type in transformer_options.get("wrappers", {}).values():
        for key in (WRAPPER_KEY, *STEP_CACHES):
            of_type.pop(key, None)
    return comfy.samplers.calc_cond_batch(model, [None] * label + [conds], x, sigma, options)[label]
