"""The names of a guider's condition lists, and whether the guider combines the predictions itself.

The host's CFGGuider evaluates the positive and the negative, combines them, and hands the result to the
post-CFG functions: what they return goes to the sampler. Other guiders (DualCFGGuider, PerpNegGuider,
DualModelGuider) evaluate their own lists in their own order. They may process the result of the post-CFG
functions further, or not call these functions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.samplers

from .placements import Conditions

POSITIVE, NEGATIVE = "positive", "negative"


def combines_itself(guider: Any) -> bool:
    """Whether the sampler may get something else than what the post-CFG functions return."""
    own = getattr(guider.predict_noise, "__func__", None)
    return own is not comfy.samplers.CFGGuider.predict_noise


def list_names(lists: Sequence[Conditions | None], conds: Mapping[str, Conditions]) -> list[str | None]:
    """The guider's names for the lists of conditions that it evaluates. conds: all its lists, by name.

    The conditions' uuids identify a list. If another node has replaced the conditions, two lists count as
    positive and negative. None for a list that the guider does not know.
    """
    usual = (POSITIVE, NEGATIVE) if len(lists) == 2 else (None,) * len(lists)
    names = []
    for own, name in zip(lists, usual, strict=True):
        alike = [n for n, known in conds.items() if uuids_of(known) == uuids_of(own)]
        names.append(name if name in alike or not alike else alike[0])
    return names


def positive_first(names: Sequence[str | None]) -> list[int]:
    """The numbers of lists of these names: the positive's, the negative's, the others'."""
    order: dict[str | None, int] = {POSITIVE: 0, NEGATIVE: 1}
    return sorted(range(len(names)), key=lambda i: order.get(names[i], 2))


def uuids_of(conds: Conditions | None) -> list[Any]:
    """The uuids of the conditions of a list. A copy of a condition keeps the uuid of the original."""
    return [cond["uuid"] for cond in conds or ()]
