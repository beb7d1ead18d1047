"""How a guider names its lists of conditions, and whether it combines the predictions for them itself.

The host's CFGGuider evaluates the positive and the negative, combines them, and hands the result to the
post-CFG functions: what they return goes to the sampler. Other guiders evaluate lists of their own in an
order of their own, and may go on with what the post-CFG functions return, multiply it, or not call them
(DualCFGGuider, PerpNegGuider, DualModelGuider).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.samplers

from .placements import Conditions

POSITIVE, NEGATIVE = "positive", "negative"


def combines_itself(guider: Any) -> bool:
    """Whether what post-CFG functions return may not be what the sampler gets."""
    own = getattr(guider.predict_noise, "__func__", None)
    return own is not comfy.samplers.CFGGuider.predict_noise


def list_names(lists: Sequence[Conditions | None], conds: Mapping[str, Conditions]) -> list[str | None]:
    """What a guider calls the lists of conditions that it evaluates; conds: all that it has, by name.

    The conditions' uuids tell. Where another node has put in others, two lists are the positive and the
    negative. None for a list that the guider does not know.
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
    """What the conditions of a list are known by: copies of a condition have the uuid of the original."""
    return [cond["uuid"] for cond in conds or ()]
