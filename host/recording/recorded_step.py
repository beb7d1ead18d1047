"""A step of a record: its maps over the whole latent, the step made of them, its preview."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...pictures.live import attention_picture, depth_picture, feature_picture
from ..sampling.chunks import Chunk, Evaluation, MapKey
from ..sampling.step_recorder import Recorder, over_latent
from .readers import DEPTH, FEATURES, PROMPT, RECEIVED
from .records import AttentionStep, FeatureStep


class Source(NamedTuple):
    """The origin of a recorded map: its key, its branch, and the number of its prompt there, else 0."""

    key: MapKey
    branch: str
    condition: int


def map_of_layer(
    recorder: Recorder, key: MapKey, belongs: Callable[[Evaluation, Chunk], bool], x: Tensor
) -> Tensor:
    """The map of a layer (B, C, *grid) over the whole latent x: as it was read, or blended.

    Of several chunks, or of one that covers a part, it is the map over the latent (over_latent) on the grid
    that the layer would have there.
    """
    parts = list(recorder.parts(key, belongs))
    chunks = [(evaluation, chunk) for evaluation, found in parts for chunk in found]
    evaluation, chunk = chunks[0]
    if len(chunks) == 1 and chunk.placement.area is None and evaluation.window is None:
        return chunk.maps[key]
    grids = [
        _whole_grid(chunk.maps[key].shape[2:], chunk.placement.weight.shape[2:], x.shape[2:])
        for _, chunk in chunks
    ]
    finest = max(grids, key=lambda grid: torch.Size(grid).numel())
    return F.interpolate(over_latent(parts, key, x), finest, mode="nearest")


def _whole_grid(grid: Sequence[int], part: Sequence[int], whole: Sequence[int]) -> tuple[int, ...]:
    """The grid over the whole latent, of a layer that has `grid` over a part of it."""
    sides = zip(grid, part, whole, strict=True)
    return tuple(max(1, round(cells * of_whole / of_part)) for cells, of_part, of_whole in sides)


def without_repeats(given: Tensor, condition: dict[str, Any]) -> Tensor:
    """The attention given to a prompt (B, tokens, *grid), once for each of its tokens.

    The host repeats a prompt that shares a pass with a longer one; its tokens share their weight then.
    """
    tokens = condition["model_conds"]["c_crossattn"].cond.shape[1]
    return given.unflatten(1, (-1, tokens)).sum(dim=1) if given.shape[1] % tokens == 0 else given


def make_step(number: int, sigma: float, maps: Mapping[Source, Tensor]) -> AttentionStep | FeatureStep:
    """A step of a record."""

    def of(kind: str) -> dict[Source, Tensor]:
        return {source: found for source, found in maps.items() if source.key.kind == kind}

    features = {(s.branch, s.key.layer): found for s, found in of(FEATURES).items()}
    # Two if the host evaluates the condition lists in separate calls: each call then chooses a condition.
    depths = sorted(of(DEPTH).items(), key=lambda item: item[0].branch != "positive")
    if features or depths:
        return FeatureStep(number, sigma, features, depths[0][1] if depths else None)
    return AttentionStep(
        number,
        sigma,
        {(s.branch, s.key.layer): found.squeeze(1) for s, found in of(RECEIVED).items()},
        {(s.branch, s.key.layer, s.condition): found for s, found in of(PROMPT).items()},
    )


def picture_of(step: AttentionStep | FeatureStep, size: tuple[int, int]) -> Tensor | None:
    """The preview of a step, (h, w, 3): mean attention of all layers; depth, or features of the last layer.

    Of the positive branch if it was recorded. size (height, width) of the image. None if only the attention
    to the prompt could be read.
    """
    if isinstance(step, FeatureStep) and step.depth is not None:
        return depth_picture(step.depth.float())
    maps = step.features if isinstance(step, FeatureStep) else step.received
    branches = sorted({branch for branch, _ in maps}, key=lambda branch: branch != "positive")
    of_branch = [found for (branch, _), found in maps.items() if branch == branches[0]]
    if not of_branch:
        return None
    if isinstance(step, FeatureStep):
        return feature_picture(of_branch[-1], size)
    return attention_picture(of_branch, size)
