"""Collects what readers read while the host evaluates the conditions of a step, chunk by chunk.

The host evaluates the conditions in as many forward passes as memory, areas and hooks ask for. A pass is a
batch of chunks: chunk i holds the latent batch for one condition, and `cond_or_uncond[i]` says which of the
condition lists it comes from. A wrapper of another node may evaluate a chunk tile by tile. An evaluation
keeps maps for every chunk or tile, and blends them with the areas, masks and strengths with which the host
blends the chunks' outputs. Tiles that overlap share their weight equally.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import comfy.model_base
import torch
import torch.nn.functional as F
from torch import Tensor

from ..keys import ModelExecutor
from ..taps.uncompiled import uncompiled
from .crops import Condition, Crop, conditions_of, crops_of
from .guiders import uuids_of
from .inner_latent import InnerLatent
from .placements import Box, Conditions, Placement, add_part, box_of, in_area, part_of, precision


class MapKey(NamedTuple):
    """Identifies a recorded map: its kind, and its layer, or a name for several layers combined."""

    kind: str
    layer: str


Maps = dict[MapKey, Tensor]  # each (rows or B, C, *grid)


class ForwardPass(NamedTuple):
    """A forward pass, as an APPLY_MODEL wrapper gets it.

    x (B, C, *spatial), sigma (B,), context (B, tokens, d).
    """

    model: comfy.model_base.BaseModel
    x: Tensor
    sigma: Tensor
    context: Tensor | None
    transformer_options: dict[str, Any]


class Reader(Protocol):
    """Reads forward passes. Immutable, so it can read any number of them."""

    def reading(
        self, forward: ForwardPass, rows: list[int]
    ) -> AbstractContextManager[tuple[dict[str, Any], Maps]]:
        """Reads the given rows of one forward pass.

        Gives the transformer_options for the pass, and a dictionary that holds the maps when the context has
        ended, (len(rows), C, *grid) each.
        """
        ...


class Chunk(NamedTuple):
    """The maps of a chunk or a tile, with the number of its condition list, its condition and its place."""

    label: int
    uuid: Any
    placement: Placement
    maps: Maps


class Evaluation:
    """What is recorded during one `calc_cond_batch`.

    active: the placements of all conditions that are active, by list and uuid. recorded: the lists to record.
    random_state: from before the evaluation.
    """

    def __init__(
        self,
        reader: Reader,
        model: Any,
        conds: list[Conditions | None],
        x: Tensor,
        active: Mapping[int, Mapping[Any, Placement]],
        recorded: Sequence[int],
        window: Any,
        random_state: list[Tensor],
    ) -> None:
        self.reader = reader
        self.model = model
        self.conds = conds
        self.x = x
        self.active = active
        self.placements = {label: active[label] for label in recorded}
        self.window = window
        self.random_state = random_state
        self.out: list[Tensor] = []
        self.evaluated: set[Condition] = set()
        self.read: dict[Condition, dict[Box, dict[int, Maps]]] = {}

    def apply_model(
        self,
        executor: ModelExecutor,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None,
        c_crossattn: Tensor | None,
        control: dict[str, Any] | None,
        transformer_options: dict[str, Any],
        **kwargs: Any,
    ) -> Tensor:
        """APPLY_MODEL wrapper: records one forward pass.

        If a wrapper evaluates a part twice, the first evaluation counts.
        """
        recorded = conditions_of(transformer_options, self.placements)
        if not recorded:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        self.evaluated.update(recorded)
        crops = crops_of(x, c_crossattn, transformer_options, self.x, self.active)
        wanted = {row: crop for row, crop in enumerate(crops) if crop and self.is_new(crop)}
        if not wanted:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        forward = ForwardPass(executor.class_obj, x, t, c_crossattn, transformer_options)
        inner = InnerLatent()
        with uncompiled(), self.reader.reading(forward, list(wanted)) as (options, maps):
            out = executor(x, t, c_concat, c_crossattn, control, inner.options(options), **kwargs)
        if inner.changed:
            return out
        for place, crop in enumerate(wanted.values()):
            boxes = self.read.setdefault(crop.condition, {})
            boxes.setdefault(crop.box, {})[crop.image] = {
                key: of_rows[place] for key, of_rows in maps.items()
            }
        return out

    def is_new(self, crop: Crop) -> bool:
        """Whether a crop should be recorded and has not been yet."""
        boxes = self.read.get(crop.condition, {})
        return crop.condition[0] in self.placements and crop.image not in boxes.get(crop.box, ())

    def tiles(self, condition: Condition) -> dict[Box, list[Maps]]:
        """What was read of the parts of a condition's chunk, image by image; parts that all images have."""
        return {
            box: [images[i] for i in range(len(self.x))]
            for box, images in self.read.get(condition, {}).items()
            if len(images) == len(self.x)
        }

    def times_covered(self, boxes: Iterable[Box]) -> Tensor:
        """How many of the boxes cover each place of the latent: (*spatial), on the CPU."""
        times = torch.zeros(self.x.shape[2:])
        for offset, size in boxes:
            add_part(times, offset, torch.ones(size))
        return times

    @cached_property
    def untraced(self) -> bool:
        """Whether a condition was evaluated, and not in parts of the latent that make up its chunk."""
        for condition in self.evaluated:
            whole = box_of(self.placement(condition).area, self.x)
            if (part_of(self.times_covered(self.tiles(condition)), *whole) == 0).any():
                return True
        return False

    @cached_property
    def chunks(self) -> list[Chunk]:
        """What was read, in the order of the passes; nothing of an evaluation that could not be traced."""
        if self.untraced:
            return []
        return [chunk for condition in self.read for chunk in self.chunks_of(condition)]

    def chunks_of(self, condition: Condition) -> list[Chunk]:
        """The chunk of a condition, or its tiles, with the maps that all of them have."""
        placement, tiles = self.placement(condition), self.tiles(condition)
        maps = stacked_alike(tiles.values())
        if not maps[0]:
            return []
        if list(tiles) == [box_of(placement.area, self.x)]:
            return [Chunk(*condition, placement, maps[0])]
        weight = torch.zeros_like(self.x[:, :1])
        in_area(weight, placement.area).add_(placement.weight)
        weight /= self.times_covered(tiles).clamp_min(1).to(weight)
        return [
            Chunk(*condition, Placement([*size, *offset], part_of(weight, offset, size)), of_tile)
            for (offset, size), of_tile in zip(tiles, maps, strict=True)
        ]

    def placement(self, condition: Condition) -> Placement:
        """Where the host puts a recorded condition's output."""
        label, uuid = condition
        return self.placements[label][uuid]

    def label_of(self, branch: int, conds: Sequence[Conditions | None]) -> int | None:
        """The number of conds[branch] among the lists of this evaluation.

        Equal to `branch` if the host evaluates the lists that it then combines, even if a node replaced them.
        Guiders with own lists (DualCFGGuider) order them differently, or leave some out: the uuids tell.
        """
        known, lists = [uuids_of(own) for own in conds], [uuids_of(own) for own in self.conds]
        in_place = lists[branch] if len(lists) == len(known) else None
        if known[branch] in lists:
            return branch if in_place == known[branch] else lists.index(known[branch])
        return None if in_place is None or in_place in known else branch

    def lists(self, conds: Sequence[Conditions | None]) -> list[Conditions | None]:
        """The lists of this evaluation, in its order: those out of conds, whole also in a context window."""
        whole = {tuple(uuids_of(own)): own for own in conds}
        return [whole.get(tuple(uuids_of(own)), own) for own in self.conds]

    def blend(
        self, chunks: Sequence[Chunk], key: MapKey, change: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sum of the chunks' maps of this key, each times its weight, and sum of the weights.

        (B, C, *spatial) and (B, 1, *spatial) over the latent of this evaluation. change, if any, is applied
        to every map (B, C, *grid) before it is placed.
        """
        channels = chunks[0].maps[key].shape[1]
        total = self.x.new_zeros(self.x.shape[0], channels, *self.x.shape[2:], dtype=precision(self.x))
        weight = torch.zeros_like(total[:, :1])
        for chunk in chunks:
            offset, _ = box_of(chunk.placement.area, self.x)
            share = chunk.placement.weight.to(weight)
            placed = change(chunk.maps[key]) if change else chunk.maps[key]
            placed = F.interpolate(placed, tuple(share.shape[2:]), mode="nearest").to(share)
            add_part(total, offset, placed * share)
            add_part(weight, offset, share)
        return total, weight


def stacked_alike(tiles: Collection[list[Maps]]) -> list[Maps]:
    """The maps of each tile (B, C, *grid), from those of its images; maps that all images and tiles have."""
    rows = [row for tile in tiles for row in tile]
    keys = [key for key in rows[0] if all(key in row for row in rows)]
    return [{key: torch.stack([row[key] for row in tile]) for key in keys} for tile in tiles]


def add_window(whole: Tensor, part: Tensor, window: Any) -> None:
    """Add the recording of a context window to the whole latent, in place. Without a window it covers all."""
    if window is None:
        whole.add_(part)
        return
    # For causal models the host may prepend the frame before the window, and drops it afterwards.
    frames = len(window.index_list)
    window.add_window(whole, part.narrow(window.dim, part.shape[window.dim] - frames, frames))
