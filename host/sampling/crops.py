"""Which part of the latent the rows of a forward pass are, and for which condition they are evaluated.

The host evaluates the latent as a whole, or a condition's area of it, in chunks of the batch. A
`model_function_wrapper` of another node may evaluate it in tiles, roll it, split the batch or reorder it, and
does not say so. The rows themselves tell: the host and such a wrapper copy numbers, so a row is, bit for bit,
a part of the latent, and its prompt is that of a condition. A row that was resized, flipped, padded, scaled
or noised is no part of the latent, and where it belongs is not known.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .placements import Placement, box_of, part_of

UNTRACED = (
    "another node evaluates the latent in tiles that do not make up the latent, or resizes, flips, pads or "
    "changes it"
)


class Crop(NamedTuple):
    """What a row of a pass is: a condition (number of its list, uuid), and a part of an image of the batch.

    offset, size: of the part, in latent pixels. A part may continue at the opposite edge of the latent.
    """

    label: int
    uuid: Any
    image: int
    offset: tuple[int, ...]
    size: tuple[int, ...]


def crops_of(
    x: Tensor,
    prompt: Tensor | None,
    transformer_options: Mapping[str, Any],
    latent: Tensor,
    placements: Mapping[int, Mapping[Any, Placement]],
) -> list[Crop | None]:
    """What each row of a pass x (rows, C, *size) is; None for a row that is not known.

    prompt (rows, tokens, d); transformer_options: of the pass. latent (B, C, *spatial) and placements: of the
    evaluation, with all conditions that are active. No row is known where two of them are the same.
    """
    known = {
        (label, uuid): placements[label][uuid]
        for label, uuid in conditions_of(transformer_options)
        if uuid in placements.get(label, ())
    }
    asked = [
        Crop(*condition, image, *box_of(known[condition].area, latent))
        for condition in known
        for image in range(len(latent))
    ]
    latent = latent.to(x)
    in_place, same_prompts = _as_asked(x, prompt, asked, latent, known)
    if in_place and same_prompts:
        return asked
    if in_place:
        boxes = [[crop[2:]] for crop in asked]
    else:
        on_cpu = latent.cpu()
        boxes = [places(row, on_cpu) for row in x.cpu()]
    pairs = [
        (row, Crop(*condition, *box))
        for row, of_row in enumerate(boxes)
        for box in of_row
        for condition, placement in known.items()
        if _covers(placement.area, *box[1:])
    ]
    candidates: list[list[Crop]] = [[] for _ in boxes]
    for (row, crop), same in zip(pairs, _same_prompts(pairs, prompt, known), strict=True):
        if same:
            candidates[row].append(crop)
    crops: list[Crop | None] = []
    for row, of_row in enumerate(candidates):
        if in_place and not of_row:  # another node changed the prompt, not the order
            of_row = [asked[row]]
        free = [crop for crop in of_row if crop not in crops]
        if of_row and not free:
            return [None] * len(x)
        crops.append(free[0] if free else None)
    return crops


def evaluates_whole(
    condition: tuple[int, Any],
    x: Tensor,
    prompt: Tensor | None,
    transformer_options: Mapping[str, Any],
    latent: Tensor,
    placements: Mapping[int, Mapping[Any, Placement]],
) -> bool:
    """Whether a pass evaluates the chunks that the host put together, a condition's for the whole latent.

    The arguments are those of `crops_of`.
    """
    crops = crops_of(x, prompt, transformer_options, latent, placements)
    chunks = conditions_of(transformer_options)
    asked = [(*chunk, image) for chunk in chunks for image in range(len(latent))]
    if [crop and crop[:3] for crop in crops] != asked:
        return False
    whole = box_of(None, latent)
    return all(crop[3:] == whole for crop in crops if crop[:2] == condition)


def conditions_of(transformer_options: Mapping[str, Any]) -> list[tuple[int, Any]]:
    """The condition of each chunk of a pass: the number of its list, and its uuid.

    All that may be, where a wrapper split the batch and told only the labels of the parts: some of these are
    no conditions.
    """
    labels, uuids = transformer_options["cond_or_uncond"], transformer_options["uuids"]
    if len(labels) == len(uuids):
        return list(zip(labels, uuids, strict=True))
    return [(label, uuid) for label in labels for uuid in uuids]


def places(part: Tensor, latent: Tensor) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Where a part (C, *size) is in a latent (B, C, *spatial): image, offset and size, once for each image.

    Empty where it is nowhere, or at two places of an image.
    """
    size, spatial = tuple(part.shape[1:]), latent.shape[2:]
    if len(size) != len(spatial) or any(s > whole for s, whole in zip(size, spatial, strict=True)):
        return []
    dims = list(range(-len(size), 0))
    found = []
    for image, whole in enumerate(latent):
        at = torch.ones(spatial, dtype=torch.bool)
        for probe in ([0] * len(size), [s // 2 for s in size], [s - 1 for s in size]):
            pixel = part[(slice(None), *probe)].view(-1, *[1] * len(size))
            at &= (whole == pixel).all(dim=0).roll([-p for p in probe], dims)
        of_image: list[tuple[int, ...]] = []
        for offset in at.nonzero().tolist():
            if torch.equal(part_of(whole, offset, size), part):
                of_image.append(tuple(offset))
            if len(of_image) == 2:
                return []
        found += [(image, offset, size) for offset in of_image]
    return found


def _covers(area: list[int] | None, offset: Sequence[int], size: Sequence[int]) -> bool:
    """Whether a part lies in a condition's area."""
    if area is None:
        return True
    dims = len(size)
    return all(
        start <= at and at + length <= start + extent
        for at, length, extent, start in zip(offset, size, area[:dims], area[dims:], strict=True)
    )


def _as_asked(
    x: Tensor,
    prompt: Tensor | None,
    asked: Sequence[Crop],
    latent: Tensor,
    known: Mapping[tuple[int, Any], Placement],
) -> tuple[bool, bool]:
    """Whether the latents, and whether the prompts, are those that the host hands over, in its order."""
    if len(asked) != len(x) or any(crop.size != x.shape[2:] for crop in asked):
        return False, False
    rows = x.split(len(latent))
    boxes = [box_of(placement.area, latent) for placement in known.values()]
    same = [(row == part_of(latent, *box)).all() for row, box in zip(rows, boxes, strict=True)]
    prompts = [torch.ones_like(same[0])]
    if len(known) > 1 and prompt is not None:
        prompts += [
            _equal(part, placement.prompt)
            for part, placement in zip(prompt.split(len(latent)), known.values(), strict=True)
        ]
    in_place, same_prompts = torch.stack([torch.stack(same).all(), torch.stack(prompts).all()]).tolist()
    return in_place, same_prompts


def _same_prompts(
    pairs: Sequence[tuple[int, Crop]],
    prompt: Tensor | None,
    known: Mapping[tuple[int, Any], Placement],
) -> list[bool]:
    """Of each pair of a row and a crop, whether the row has the prompt of the crop's condition."""
    if len(known) == 1 or not pairs:
        return [True] * len(pairs)
    if prompt is None:
        return [False] * len(pairs)
    same = [_equal(prompt[row], known[crop[:2]].prompt[crop.image]) for row, crop in pairs]
    return torch.stack(same).tolist()


def _equal(prompt: Tensor, expected: Tensor) -> Tensor:
    """Whether a prompt (..., tokens, d) is the expected one: a boolean, on the device.

    The host repeats a prompt that shares a pass with a longer one.
    """
    times, rest = divmod(prompt.shape[-2], expected.shape[-2])
    if rest or prompt.shape[-1] != expected.shape[-1]:
        return torch.zeros((), dtype=torch.bool, device=prompt.device)
    repeated = prompt.unflatten(-2, (times, -1))
    return (repeated == expected.to(prompt).unsqueeze(-3)).all()
