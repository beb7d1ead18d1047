"""What is read of the model while the host evaluates a step's conditions, put together chunk by chunk.

The host evaluates the conditions in as many forward passes as memory, areas and hooks ask for. A pass is a
batch of chunks: chunk i holds the latent batch for one condition, and `cond_or_uncond[i]` says from which of
the condition lists it is. An evaluation writes down maps for every chunk, and blends the maps by the same
areas, masks and strengths by which the host blends the chunks' outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import comfy.model_base
import comfy.samplers
import torch
import torch.nn.functional as F
from torch import Tensor

from ..keys import ModelExecutor

Conditions = list[dict[str, Any]]


class MapKey(NamedTuple):
    """What a map in a recording is: its kind, and the name of its layer, or of what it makes of several."""

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
    """Says what is read of a forward pass. Immutable; it reads many passes."""

    def reading(
        self, forward: ForwardPass, rows: list[int]
    ) -> AbstractContextManager[tuple[dict[str, Any], Maps]]:
        """Reads the given rows of one forward pass.

        Gives the transformer_options for the pass, and a dictionary that holds the maps when the context has
        ended, (len(rows), C, *grid) each.
        """
        ...


class Placement(NamedTuple):
    """Where the host puts the output of a condition: area (sizes, then offsets) and weight (B, 1, *area)."""

    area: list[int] | None
    weight: Tensor


class Chunk(NamedTuple):
    """What was read of a chunk: number of its condition list, its condition, where it belongs, maps."""

    label: int
    uuid: Any
    placement: Placement
    maps: Maps


class Evaluation:
    """What is recorded during one `calc_cond_batch`: the chunks of the condition lists in `placements`."""

    def __init__(
        self,
        reader: Reader,
        model: Any,
        conds: list[Conditions | None],
        x: Tensor,
        active: list[int],
        placements: dict[int, dict[Any, Placement]],
        window: Any,
    ) -> None:
        self.reader = reader
        self.model = model
        self.conds = conds
        self.x = x
        self.active = active
        self.placements = placements
        self.window = window
        self.chunks: list[Chunk] = []
        self.rows: dict[Any, list[Maps]] = {}

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

        A model_function_wrapper may split a batch over several passes: their rows follow one another, so the
        rows so far tell which these are. Rows that it adds are nobody's, and such a pass is not recorded.
        """
        labels, uuids = transformer_options["cond_or_uncond"], transformer_options["uuids"]
        batch = self.x.shape[0]
        rows = self.rows.setdefault((*labels, *uuids), [])
        numbers = range(len(rows), len(rows) + x.shape[0])
        if numbers.stop > len(labels) * batch:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        wanted = [i for i, number in enumerate(numbers) if labels[number // batch] in self.placements]
        maps: Maps = {}
        if wanted:
            forward = ForwardPass(executor.class_obj, x, t, c_crossattn, transformer_options)
            with self.reader.reading(forward, wanted) as (transformer_options, maps):
                out = executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        else:
            out = executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

        rows.extend({} for _ in numbers)
        for place, i in enumerate(wanted):
            rows[numbers[i]] = {key: of_rows[place] for key, of_rows in maps.items()}
        if len(rows) == len(labels) * batch:
            for i, label in enumerate(labels):
                uuid = self.uuid_of(label, uuids[i] if len(uuids) == len(labels) else None)
                chunk = stacked(rows[i * batch : (i + 1) * batch])
                if uuid is not None and chunk:
                    self.chunks.append(Chunk(label, uuid, self.placements[label][uuid], chunk))
            rows.clear()
        return out

    def label_of(self, branch: int, conds: Sequence[Conditions | None]) -> int | None:
        """The number that conds[branch] has among the lists of this evaluation.

        The same where the host evaluates the lists that it then combines. Guiders with lists of their own
        (DualCFGGuider) order them differently; the conditions' uuids tell.
        """
        if len(self.conds) == len(conds):
            return branch
        wanted = [cond["uuid"] for cond in conds[branch] or ()]
        lists = ([cond["uuid"] for cond in own or ()] for own in self.conds)
        return next((label for label, uuids in enumerate(lists) if uuids == wanted), None)

    def uuid_of(self, label: int, uuid: Any) -> Any | None:
        """The condition of a recorded list that has this uuid; None where there is none.

        uuid None: a model_function_wrapper split the batch and told only the labels of the parts, which is
        enough for a list of one condition.
        """
        placements = self.placements.get(label, {})
        if uuid is None and len(placements) == 1:
            return next(iter(placements))
        return uuid if uuid in placements else None

    def blend(
        self, chunks: Sequence[Chunk], key: MapKey, change: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sum of the chunks' maps of this key, each times its weight, and sum of the weights.

        (B, C, *spatial) and (B, 1, *spatial) over the latent of this evaluation. change, if any, is applied
        to every map (B, C, *grid) before it is placed.
        """
        channels = chunks[0].maps[key].shape[1]
        total = self.x.new_zeros(self.x.shape[0], channels, *self.x.shape[2:])
        weight = torch.zeros_like(self.x[:, :1])
        for chunk in chunks:
            area, share = chunk.placement
            placed = change(chunk.maps[key]) if change else chunk.maps[key]
            placed = F.interpolate(placed, tuple(share.shape[2:]), mode="nearest").to(share)
            in_area(total, area).add_(placed * share)
            in_area(weight, area).add_(share)
        return total, weight


def stacked(rows: list[Maps]) -> Maps:
    """The maps that all rows have, (B, C, *grid) each."""
    keys = [key for key in rows[0] if all(key in row for row in rows)]
    return {key: torch.stack([row[key] for row in rows]) for key in keys}


def placements_of(conds: Conditions, x: Tensor, timestep: Tensor) -> dict[Any, Placement]:
    """Where the host puts the outputs of those conditions of a list that are active at this step, by uuid.

    As `_calc_cond_batch` and `finalize_default_conds` of the host do it: a default condition gets what the
    others leave free.
    """
    found, defaults = {}, []
    free = torch.ones_like(x[:, :1])
    for cond in conds:
        placed = comfy.samplers.get_area_and_mult(cond, x, timestep)
        if placed is None:
            continue
        if "default" in cond:
            defaults.append(cond["uuid"])
        else:
            found[cond["uuid"]] = Placement(placed.area, placed.mult[:, :1])
            in_area(free, placed.area).sub_(placed.mult[:, :1])
    return found | {uuid: Placement(None, free.clamp_min(0)) for uuid in defaults}


def full_frame_condition(
    placements: Mapping[int, Mapping[Any, Placement]], x: Tensor
) -> tuple[int, Any] | None:
    """The condition whose features tell the depth of the whole image x: number of its list, uuid.

    placements: those of each list, by number and uuid. It is the first condition that covers the whole frame,
    of the positive where there is one, else of the negative: a prompt for a region knows nothing of the rest.
    """
    for label, of_list in placements.items():
        for uuid, (_, weight) in of_list.items():
            # An area that covers less has a smaller weight map; a mask has zeros in it.
            if weight.shape[2:] == x.shape[2:] and (weight > 0).all():
                return label, uuid
    return None


def in_area(x: Tensor, area: list[int] | None) -> Tensor:
    """The part of x (B, C, *spatial) that a condition's area covers: a view."""
    if area is None:
        return x
    for i in range(len(area) // 2):
        x = x.narrow(i + 2, area[i + len(area) // 2], area[i])
    return x


def add_window(whole: Tensor, part: Tensor, window: Any) -> None:
    """Add what a context window recorded to the whole latent, in place; without a window it is the whole."""
    if window is None:
        whole.add_(part)
        return
    # The host may put the frame before a window in front of it, for causal models, and drops it afterwards.
    frames = len(window.index_list)
    window.add_window(whole, part.narrow(window.dim, part.shape[window.dim] - frames, frames))
