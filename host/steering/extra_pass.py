"""Extra evaluations of the model, in addition to the sampler's own."""

from collections.abc import Sequence
from typing import Any

import comfy.model_patcher
import comfy.samplers
from torch import Tensor

from ..gradients.rows import lists_are_independent
from ..keys import CALC_COND_BATCH_FUNCTION, TAG, drop_ours
from ..sampling.placements import Conditions
from ..sampling.random_state import drawing_from
from ..taps.uncompiled import uncompiled


def extra_pass(
    guidance: str,
    model: Any,
    lists: Sequence[Conditions | None],
    label: int,
    x: Tensor,
    sigma: Tensor,
    model_options: dict[str, Any],
    random_state: list[Tensor],
) -> Tensor:
    """D(x) for one list of conditions, evaluated as the host would: areas, hooks, ControlNets, windows.

    lists: of the sampler's own evaluation, in its order. label: the number of the list to evaluate (1 for the
    negative); patches find it in `cond_or_uncond`. The other lists are evaluated too if code of other nodes
    may make the result depend on them; otherwise they are left out. ControlNets run again on this x, so the
    sampler's pass loses nothing. random_state: from before the sampler's pass.
    """
    options = comfy.model_patcher.create_model_options_clone(model_options)
    transformer_options = options["transformer_options"]
    transformer_options[TAG] = guidance
    drop_ours(transformer_options.get("wrappers", {}))
    if lists_are_independent(model, options):
        # The host evaluates nothing for None.
        lists = [own if i == label else None for i, own in enumerate(lists)]
    function = options.get(CALC_COND_BATCH_FUNCTION)
    with uncompiled(), drawing_from(random_state, x.device):
        if function is None:
            return comfy.samplers.calc_cond_batch(model, lists, x, sigma, options)[label]  # type: ignore[arg-type]
        args = {"conds": lists, "input": x, "sigma": sigma, "model": model, "model_options": options}
        return function(args)[label]
