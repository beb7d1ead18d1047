"""Our own evaluations of the model, beside the one that the sampler asked for."""

from typing import Any

import comfy.model_patcher
import comfy.samplers
from torch import Tensor

from ..keys import TAG, drop_ours


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
    drop_ours(transformer_options.get("wrappers", {}))
    lists: list[Any] = [None] * label + [conds]  # the host evaluates none for None
    return comfy.samplers.calc_cond_batch(model, lists, x, sigma, options)[label]
