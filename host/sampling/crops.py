"""Finds which part of the latent each row of a forward pass holds, and for which condition.

The host evaluates the latent as a whole, or a condition's area of it, in chunks of the batch. A
`model_function_wrapper` of another node may evaluate it in tiles, roll it, split the batch or reorder it,
without saying so. The rows tell: the host and such a wrapper only copy numbers, so a row equals a part of the
latent, bit for bit, and its prompt equals that of a condition. A row that was resized, flipped, padded,
scaled or noised equals no part of the latent, so its place is unknown.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .placements import Box, Placement, box_of, part_of

Condition = tuple[int, Any]  # number of its list, uuid
UNTRACED = (
    "another node evaluates the latent in tiles that do not make up the latent, or resizes, flips, pads or "
    "changes it"
)


class Crop(NamedTuple):
    """What a row of a pass holds: a part of an image of the batch, for a condition. It may cross an edge."""

    condition: Condition
    image: int
    box: Box


def crops_of(
    x: Tensor,
    prompt: Tensor | None,
    transformer_options: Mapping[str, Any],
    latent: Tensor,
    placements: Mapping[int, Mapping[Any, Placement]],
) -> Sequence[Crop | None]:
    """The crop that each row of a pass x (rows, C, *size) holds; None for an unknown row.

    prompt (rows, tokens, d); transformer_options: of the pass. latent (B, C, *spatial) and placements: of the
    evaluation, with all active conditions. If two rows would be the same crop, all are unknown.
    """
    known = {
        (label, uuid): placements[label][uuid]
        for label, uuid in conditions_of(transformer_options, placements)
    }
    asked = [
        Crop(condition, image, box_of(placement.area, latent))
        for condition, placement in known.items()
        for image in range(len(latent))
    ]
    latent = latent.to(x)
    in_place, same_prompts = _as_asked(x, prompt, asked, latent, known)
    in_order = _in_order(transformer_options, placements)
    if in_place and same_prompts and in_order:
        return asked
    if in_place:
        found = [[(crop.image, crop.box)] for crop in asked]
    else:
        on_cpu = latent.cpu()
        found = [places(row, on_cpu) for row in x.cpu()]
    candidates = [
        (row, Crop(condition, image, box))
        for row, of_row in enumerate(found)
        for image, box in of_row
        for condition, placement in known.items()
        if placement.area is None or _covers(box_of(placement.area, latent), box)
    ]
    same = _same_prompts(candidates, prompt, known)
    crops: list[Crop | None] = []
    for row in range(len(x)):
        of_row = [
            crop for (number, crop), told in zip(candidates, same, strict=True) if told and number == row
        ]
        if not in_order and len({crop.condition for crop in of_row}) > 1:
            return [None] * len(x)
        if in_place and in_order and not of_row:  # another node changed the prompt, not the order
            of_row = [asked[row]]
        free = [crop for crop in of_row if crop not in crops]
        if of_row and not free:
            return [None] * len(x)
        crops.append(free[0] if free else None)
    return crops


def whole_chunks(
    x: Tensor,
    prompt: Tensor | None,
    transformer_options: Mapping[str, Any],
    latent: Tensor,
    placements: Mapping[int, Mapping[Any, Placement]],
) -> list[Condition]:
    """The conditions of a pass, chunk by chunk; none unless each chunk holds what the host asked for.

    The arguments are those of `crops_of`.
    """
    crops = crops_of(x, prompt, transformer_options, latent, placements)
    chunks = [crop.condition for crop in crops[:: len(latent)] if crop]
    asked = [
        Crop((label, uuid), image, box_of(placements[label][uuid].area, latent))
        for label, uuid in chunks
        for image in range(len(latent))
    ]
    return chunks if crops == asked else []


def conditions_of(
    transformer_options: Mapping[str, Any], placements: Mapping[int, Mapping[Any, Placement]]
) -> list[Condition]:
    """The conditions that a pass may hold, out of placements: chunk by chunk, if its labels tell.

    If a wrapper dropped the labels, or split the batch and gave only those of the parts, all possible pairs.
    """
    labels, uuids = _labels(transformer_options, placements)
    pairs = zip(labels, uuids, strict=True) if len(labels) == len(uuids) else product(labels, uuids)
    return [(label, uuid) for label, uuid in pairs if uuid in placements.get(label, ())]


def _labels(
    transformer_options: Mapping[str, Any], placements: Mapping[int, Mapping[Any, Placement]]
) -> tuple[Sequence[int], Sequence[Any]]:
    """The numbers of the lists, and the uuids, of a pass: all that there may be, if nothing tells them.

    If a wrapper dropped one of the two, the other tells it.
    """
    numbers = {uuid: label for label, of_list in placements.items() for uuid in of_list}
    labels, uuids = transformer_options.get("cond_or_uncond"), transformer_options.get("uuids")
    if labels is None and uuids is not None:
        uuids = [uuid for uuid in uuids if uuid in numbers]
        return [numbers[uuid] for uuid in uuids], uuids
    if labels is not None and uuids is None and all(len(placements.get(label, ())) == 1 for label in labels):
        return labels, [next(iter(placements[label])) for label in labels]
    return list(placements) if labels is None else labels, list(numbers) if uuids is None else uuids


def _in_order(
    transformer_options: Mapping[str, Any], placements: Mapping[int, Mapping[Any, Placement]]
) -> bool:
    """Whether the labels of a pass tell the condition of each chunk."""
    labels, uuids = _labels(transformer_options, placements)
    return len(labels) == len(uuids) and bool(transformer_options.keys() & {"cond_or_uncond", "uuids"})


def places(part: Tensor, latent: Tensor) -> list[tuple[int, Box]]:
    """The places of a part (C, *size) in a latent (B, C, *spatial): image and box, at most one per image.

    Empty if it occurs nowhere, or twice in one image.
    """
    size, spatial = tuple(part.shape[1:]), latent.shape[2:]
    if len(size) != len(spatial) or any(s > whole for s, whole in zip(size, spatial, strict=True)):
        return []
    found = []
    for image, whole in enumerate(latent):
        at = torch.ones(spatial, dtype=torch.bool)
        for probe in ([0] * len(size), [s // 2 for s in size], [s - 1 for s in size]):
            pixel = part_of(part, probe, [1] * len(size))
            at &= (whole == pixel).all(dim=0).roll([-p for p in probe], list(range(len(size))))
        offsets: list[tuple[int, ...]] = []
        for offset in at.nonzero().tolist():
            if torch.equal(part_of(whole, offset, size), part):
                offsets.append(tuple(offset))
            if len(offsets) == 2:
                return []
        found += [(image, (offset, size)) for offset in offsets]
    return found


def same_numbers(a: Tensor, b: Tensor) -> Tensor:
    """Whether two tensors are equal, also where they are not a number: a boolean, on the device."""
    return ((a == b) | (a.isnan() & b.isnan())).all()


def _covers(area: Box, part: Box) -> bool:
    """Whether a part lies in an area."""
    (starts, extents), (offset, size) = area, part
    inside = zip(offset, size, starts, extents, strict=True)
    return all(start <= at and at + length <= start + extent for at, length, start, extent in inside)


def _as_asked(
    x: Tensor,
    prompt: Tensor | None,
    asked: Sequence[Crop],
    latent: Tensor,
    known: Mapping[Condition, Placement],
) -> tuple[bool, bool]:
    """Whether the latents, and whether the prompts, are the host's own, in the host's order."""
    if len(asked) != len(x) or any(crop.box[1] != x.shape[2:] for crop in asked):
        return False, False
    rows = zip(x.split(len(latent)), known.values(), strict=True)
    same = [same_numbers(row, part_of(latent, *box_of(p.area, latent))) for row, p in rows]
    prompts = [torch.ones_like(same[0])]
    if len(known) > 1 and prompt is not None:
        parts = zip(prompt.split(len(latent)), known.values(), strict=True)
        prompts = [_equal(part, placement.prompt) for part, placement in parts]
    in_place, same_prompts = torch.stack([torch.stack(same).all(), torch.stack(prompts).all()]).tolist()
    return in_place, same_prompts


def _same_prompts(
    candidates: Sequence[tuple[int, Crop]],
    prompt: Tensor | None,
    known: Mapping[Condition, Placement],
) -> Iterable[bool]:
    """Of each candidate, a row and a crop, whether the row has the prompt of the crop's condition."""
    if len(known) == 1 or not candidates:
        return [True] * len(candidates)
    if prompt is None:
        return [False] * len(candidates)
    prompts = {condition: placement.prompt for condition, placement in known.items()}
    same = []
    for row, crop in candidates:
        of_batch = prompts[crop.condition]
        same.append(_equal(prompt[row], None if of_batch is None else of_batch[crop.image]))
    return torch.stack(same).tolist()


def _equal(prompt: Tensor, expected: Tensor | None) -> Tensor:
    """Whether a prompt (..., tokens, d) is the expected one: a boolean, on the device.

    The host repeats a prompt that shares a pass with a longer one.
    """
    if expected is None or prompt.shape[-1] != expected.shape[-1] or prompt.shape[-2] % expected.shape[-2]:
        return torch.zeros((), dtype=torch.bool, device=prompt.device)
    repeated = prompt.unflatten(-2, (-1, expected.shape[-2]))
    return (repeated == expected.to(prompt).unsqueeze(-3)).all()
