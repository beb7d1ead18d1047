"""Where the host puts what the conditions of a step predict: areas, masks and strengths."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import comfy.samplers
import torch
from torch import Tensor

Conditions = list[dict[str, Any]]
Box = tuple[tuple[int, ...], tuple[int, ...]]  # offset and size of a part of the latent, in latent pixels


class Placement(NamedTuple):
    """Where the host puts the output of a condition: area (sizes, then offsets) and weight (B, 1, *area).

    prompt (B, tokens, d): what the model gets for it as c_crossattn; None for a model without.
    """

    area: list[int] | None
    weight: Tensor
    prompt: Tensor | None = None


def placements_of(conds: Conditions, x: Tensor, timestep: Tensor) -> dict[Any, Placement]:
    """Where the host puts the outputs of those conditions of a list that are active at this step, by uuid.

    Follows `_calc_cond_batch` and `finalize_default_conds` of the host: a default condition gets the part
    that the others leave free.
    """
    found, defaults = {}, {}
    free = torch.ones_like(x[:, :1])
    for cond in conds:
        placed = comfy.samplers.get_area_and_mult(cond, x, timestep)
        if placed is None:
            continue
        prompt = placed.conditioning.get("c_crossattn")
        prompt = None if prompt is None else prompt.cond
        if "default" in cond:
            defaults[cond["uuid"]] = prompt
        else:
            found[cond["uuid"]] = Placement(placed.area, placed.mult[:, :1], prompt)
            in_area(free, placed.area).sub_(placed.mult[:, :1])
    free.clamp_min_(0)
    return found | {uuid: Placement(None, free, prompt) for uuid, prompt in defaults.items()}


def full_frame_condition(
    placements: Mapping[int, Mapping[Any, Placement]], x: Tensor
) -> tuple[int, Any] | None:
    """The condition to read the depth of the whole image x from: number of its list, uuid.

    placements: by number of the list, then by uuid. The first condition that covers the whole frame, in the
    first list that has one: a prompt for a region knows nothing of the rest.
    """
    for label, of_list in placements.items():
        for uuid, placement in of_list.items():
            # An area that covers less has a smaller weight map; a mask has zeros in it.
            if placement.weight.shape[2:] == x.shape[2:] and (placement.weight > 0).all():
                return label, uuid
    return None


def precision(x: Tensor) -> torch.dtype:
    """In which maps over a latent are blended: at least float32, since a mask compares them with 1."""
    return torch.promote_types(x.dtype, torch.float32)


def in_area(x: Tensor, area: list[int] | None) -> Tensor:
    """The part of x (B, C, *spatial) that a condition's area covers: a view."""
    return x if area is None else part_of(x, *box_of(area, x))


def box_of(area: list[int] | None, x: Tensor) -> Box:
    """The part of the latent x (B, C, *spatial) that a condition's area covers."""
    if area is None:
        return (0,) * (x.ndim - 2), tuple(x.shape[2:])
    dims = len(area) // 2
    return tuple(area[dims:]), tuple(area[:dims])


def part_of(x: Tensor, offset: Sequence[int], size: Sequence[int]) -> Tensor:
    """The part (..., *size) of x (..., *spatial) at an offset. It may cross an edge, as if x were rolled.

    A view, unless it crosses an edge.
    """
    dims = range(-len(size), 0)
    if _crosses_edge(x, offset, size):
        x, offset = x.roll([-start for start in offset], list(dims)), [0] * len(size)
    for dim, start, length in zip(dims, offset, size, strict=True):
        x = x.narrow(dim, start, length)
    return x


def add_part(x: Tensor, offset: Sequence[int], part: Tensor) -> None:
    """Add a part (..., *size) to x (..., *spatial) at an offset, in place; it may cross an edge."""
    size = part.shape[-len(offset) :]
    if not _crosses_edge(x, offset, size):
        part_of(x, offset, size).add_(part)
        return
    dims = list(range(-len(size), 0))
    rolled = x.roll([-start for start in offset], dims)
    part_of(rolled, [0] * len(size), size).add_(part)
    x.copy_(rolled.roll(list(offset), dims))


def _crosses_edge(x: Tensor, offset: Sequence[int], size: Sequence[int]) -> bool:
    spatial = x.shape[-len(size) :]
    return any(start + length > whole for start, length, whole in zip(offset, size, spatial, strict=True))
