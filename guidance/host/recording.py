"""The attention that the image's tokens receive, recorded while a step's conditions are evaluated.

The host evaluates the conditions in as many forward passes as memory, areas and hooks ask for. A pass is a
batch of chunks: chunk i holds the latent batch for one condition, and `cond_or_uncond[i]` says from which of
the condition lists it is. The recorder writes down a map for every chunk, and blends the maps by the same
areas, masks and strengths by which the host blends the chunks' outputs; with context windows, over them too.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..self_attention import average_on_finest_grid, received_attention, resize_nearest
from .attention_tap import Attention, UNetAttentionTap
from .blocks import AttentionLayer
from .joint_attention_tap import JointAttentionTap
from .joint_models import joint_model

# All wrappers of ours stand under this key, so that our own passes can leave them out (extra_pass.py).
WRAPPER_KEY = "inner_guidance"

Conditions = list[dict[str, Any]]


class Placement(NamedTuple):
    """Where the host puts the output of a condition: area (sizes, then offsets) and weight (B, 1, *area)."""

    area: list[int] | None
    weight: Tensor


class ChunkMap(NamedTuple):
    """What a chunk recorded: the number of its condition list, where it belongs, a map (B, *grid)."""

    label: int
    placement: Placement
    received: Tensor


class AttentionRecorder:
    """Records the attention received in `layers` at one step; made for it and dropped with it.

    choose(labels, count) says which of `count` condition lists to record, out of those that have a condition
    which is active at this step. What is evaluated after stop() is not recorded.
    """

    def __init__(
        self, layers: Sequence[AttentionLayer], choose: Callable[[list[int], int], list[int]]
    ) -> None:
        self.layers = layers
        self.choose = choose
        self.evaluations: list[Evaluation] = []
        self.stopped = False

    def calc_cond_batch(
        self,
        executor: Callable[..., list[Tensor]],
        model: Any,
        conds: list[Conditions | None],
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> list[Tensor]:
        """CALC_COND_BATCH wrapper: records one evaluation."""
        if self.stopped:
            return executor(model, conds, x_in, timestep, model_options)
        placements = {i: placements_of(cond, x_in, timestep) for i, cond in enumerate(conds) if cond}
        active = [label for label, placed in placements.items() if placed]
        evaluation = Evaluation(
            self.layers,
            model,
            conds,
            x_in,
            active,
            {label: placements[label] for label in self.choose(active, len(conds))},
            model_options["transformer_options"].get("context_window"),
        )
        options = comfy.model_patcher.create_model_options_clone(model_options)
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.APPLY_MODEL, WRAPPER_KEY, evaluation.apply_model, options, is_model_options=True
        )
        out = executor(model, conds, x_in, timestep, options)
        self.evaluations.append(evaluation)
        return out

    def stop(self) -> None:
        """Record no more: what follows at this step are other nodes' passes."""
        self.stopped = True

    def model_and_label(self, branch: int, conds: Sequence[Conditions | None]) -> tuple[Any, int] | None:
        """The model that evaluated conds[branch] at this step, and the number that the list had there.

        Usually the sampler's model and `branch`; not so with DualModelGuider and DualCFGGuider. None where no
        condition of the list is active at this step.
        """
        for evaluation in self.evaluations:
            label = evaluation.label_of(branch, conds)
            if label in evaluation.active:
                return evaluation.model, label
        return None

    def received(
        self,
        branch: int,
        conds: Sequence[Conditions | None],
        x: Tensor,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor | None:
        """The map of conds[branch] over the whole latent x: (B, 1, *spatial), or None if there is none.

        change, if any, is applied to every chunk's map (B, *grid) before it is placed.
        """
        total, weight = torch.zeros_like(x[:, :1]), torch.zeros_like(x[:, :1])
        windows = []
        for evaluation in self.evaluations:
            label = evaluation.label_of(branch, conds)
            window = evaluation.window and evaluation.window.index_list
            # A second evaluation of the same conditions at a step is another node's.
            if window in windows or not evaluation.recorded(label):
                continue
            windows.append(window)
            for whole, part in zip((total, weight), evaluation.blend(label, change), strict=True):
                add_window(whole, part, evaluation.window)
        return total / weight.clamp_min(torch.finfo(weight.dtype).tiny) if windows else None


class Evaluation:
    """What is recorded during one `calc_cond_batch`: the chunks of the condition lists in `placements`."""

    def __init__(
        self,
        layers: Sequence[AttentionLayer],
        model: Any,
        conds: list[Conditions | None],
        x: Tensor,
        active: list[int],
        placements: dict[int, dict[Any, Placement]],
        window: Any,
    ) -> None:
        self.layers = layers
        self.model = model
        self.conds = conds
        self.x = x
        self.active = active
        self.placements = placements
        self.window = window
        self.chunks: list[ChunkMap] = []
        self.rows: dict[Any, list[Tensor | None]] = {}

    def apply_model(
        self,
        executor: Callable[..., Tensor],
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
        maps: list[Tensor] = []
        if wanted:
            transformer_options = self.tap(
                executor.class_obj.diffusion_model,
                x,
                c_crossattn,
                lambda attention: maps.append(received_by(attention, wanted)),
            ).install(transformer_options)

        out = executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

        of_row = dict(zip(wanted, average_on_finest_grid(maps), strict=True)) if maps else {}
        rows.extend(of_row.get(i) for i in range(x.shape[0]))
        if len(rows) == len(labels) * batch:
            for i, label in enumerate(labels):
                chunk = rows[i * batch : (i + 1) * batch]
                placement = self.placement_of(label, uuids[i] if len(uuids) == len(labels) else None)
                if placement is not None and all(row is not None for row in chunk):
                    self.chunks.append(ChunkMap(label, placement, torch.stack(chunk)))
            rows.clear()
        return out

    def tap(
        self,
        diffusion_model: torch.nn.Module,
        x: Tensor,
        context: Tensor,
        read: Callable[[Attention], None],
    ) -> UNetAttentionTap | JointAttentionTap:
        """The tap for one forward pass of a model."""
        if joint_model(diffusion_model):
            return JointAttentionTap(self.layers, diffusion_model, x, context, read)
        return UNetAttentionTap(self.layers, read)

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

    def placement_of(self, label: int, uuid: Any) -> Placement | None:
        """Where a condition of a recorded list belongs.

        uuid None: a model_function_wrapper split the batch and told only the labels of the parts, which is
        enough for a list of one condition.
        """
        placements = self.placements.get(label, {})
        if uuid is None and len(placements) == 1:
            return next(iter(placements.values()))
        return placements.get(uuid)

    def recorded(self, label: int | None) -> bool:
        """Whether there is a map of this list."""
        return any(chunk.label == label for chunk in self.chunks)

    def blend(self, label: int, change: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
        """Sum of the maps of a list, each times its weight, and sum of the weights: (B, 1, *spatial)."""
        total, weight = torch.zeros_like(self.x[:, :1]), torch.zeros_like(self.x[:, :1])
        for chunk in self.chunks:
            if chunk.label == label:
                area, share = chunk.placement
                received = change(chunk.received) if change else chunk.received
                received = resize_nearest(received, share.shape[2:]).unsqueeze(1).to(share)
                in_area(total, area).add_(received * share)
                in_area(weight, area).add_(share)
        return total, weight


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


def in_area(x: Tensor, area: list[int] | None) -> Tensor:
    """The part of x (B, C, *spatial) that a condition's area covers: a view."""
    for i in range(len(area or ()) // 2):
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


def received_by(attention: Attention, rows: list[int]) -> Tensor:
    """The attention received in the given rows of the batch: (len(rows), *grid)."""

    def of_rows(t: Tensor) -> Tensor:
        return t.unflatten(0, (-1, attention.tiles))[rows].flatten(0, 1)

    mask = attention.attn_mask
    if mask is not None and mask.shape[0] > 1:
        mask = of_rows(mask)
    received = received_attention(of_rows(attention.q), of_rows(attention.k), mask)
    return received.reshape(len(rows), *attention.grid)
