"""Finds which part of the latent each row of a forward pass holds, and for which condition.

The host evaluates the latent as a whole, or a condition's area of it, in chunks of the batch. A
`model_function_wrapper` of another node may evaluate it in tiles, roll it, split the batch or reorder it,
without saying so. The rows tell: the host and such a wrapper only copy numbers, so a row equals a part of the
latent, bit for bit, and its prompt equals that of a condition. A row that was resized, flipped, padded,
scaled or noised equals no part of the latent, so its place is unknown.
"""

from collections.abc import Iterable, Mapping, Sequence
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
        for label, uuid in conditions_of(transformer_options)
        if uuid in placements.get(label, ())
    }
    asked = [
        Crop(condition, image, box_of(placement.area, latent))
        for condition, placement in known.items()
        for image in range(len(latent))
    ]
    latent = latent.to(x)
    in_place, same_prompts = _as_asked(x, prompt, asked, latent, known)
    if in_place and same_prompts:
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
        if in_place and not of_row:  # another node changed the prompt, not the order
            of_row = [asked[row]]
        free = [crop for crop in of_row if crop not in crops]
        if of_row and not free:
            return [None] * len(x)
        crops.append(free[0] if free else None)
    return crops


def evaluates_whole(
    condition: Condition,
    x: Tensor,
    prompt: Tensor | None,
    transformer_options: Mapping[str, Any],
    latent: Tensor,
    placements: Mapping[int, Mapping[Any, Placement]],
) -> bool:
    """Whether a pass evaluates the chunks that the host put together, a condition's for the whole latent.

    The arguments are those of `crops_of`.
    """
    crops = [crop for crop in crops_of(x, prompt, transformer_options, latent, placements) if crop]
    chunks = conditions_of(transformer_options)
    asked = [(chunk, image) for chunk in chunks for image in range(len(latent))]
    if len(crops) < len(x) or [crop[:2] for crop in crops] != asked:
        return False
    return all(crop.box == box_of(None, latent) for crop in crops if crop.condition == condition)


def conditions_of(transformer_options: Mapping[str, Any]) -> list[Condition]:
    """The condition of each chunk of a pass: the number of its list, and its uuid.

    If a wrapper split the batch and gave only the labels of the parts, all possible pairs; some of them do
    not exist.
    """
    labels, uuids = transformer_options["cond_or_uncond"], transformer_options["uuids"]
    if len(labels) == len(uuids):
        return list(zip(labels, uuids, strict=True))
    return [(label, uuid) for label in labels for uuid in uuids]


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
