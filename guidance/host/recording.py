"""Records what is read of the model at one step, over the whole latent, context windows put together."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..self_attention import average_on_finest_grid, received_attention
from .attention_tap import Attention, UNetAttentionTap
from .blocks import AttentionLayer
from .evaluation import (
    Chunk,
    Conditions,
    Evaluation,
    Maps,
    Placement,
    Reader,
    add_window,
    placements_of,
)
from .joint_attention_tap import JointAttentionTap
from .joint_models import joint_model

# All wrappers of ours stand under this key, so that our own passes can leave them out (extra_pass.py).
WRAPPER_KEY = "inner_guidance"


class Recorder:
    """Records what `reader` reads at one step; made for it and dropped with it.

    choose(placements, conds, x) says which of the condition lists to record, out of those that have a
    condition which is active at this step; placements has these, by number and uuid. What is evaluated after
    stop() is not recorded.
    """

    def __init__(
        self,
        reader: Reader,
        choose: Callable[
            [Mapping[int, Mapping[Any, Placement]], Sequence[Conditions | None], Tensor], list[int]
        ],
    ) -> None:
        self.reader = reader
        self.choose = choose
        self.evaluations: list[Evaluation] = []
        self.stopped = False

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of the sampler's model_options in which its evaluation is recorded, and no other node's."""
        options = comfy.model_patcher.create_model_options_clone(model_options)
        wrap_calc_cond_batch(options, self.calc_cond_batch)
        for function in ("sampler_pre_cfg_function", "sampler_post_cfg_function"):
            options.setdefault(function, []).insert(0, self.after_evaluation)
        return options

    def after_evaluation(self, args: dict[str, Any]) -> Any:
        """The first sampler_pre_cfg_function and sampler_post_cfg_function: ends the recording."""
        self.stop()
        return args["conds_out"] if "conds_out" in args else args["denoised"]

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
        active = {label: placed for label, placed in placements.items() if placed}
        evaluation = Evaluation(
            self.reader,
            model,
            conds,
            x_in,
            list(active),
            {label: active[label] for label in self.choose(active, conds, x_in)},
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

    def over_latent(
        self,
        key: Hashable,
        belongs: Callable[[Evaluation, Chunk], bool],
        x: Tensor,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor | None:
        """The blended maps of this key of the chunks that belong, over the whole latent x: (B, C, *spatial).

        None if there are none. change, if any, is applied to every chunk's map before it is placed.
        """
        total = weight = None
        for evaluation, chunks in self.parts(key, belongs):
            sums = evaluation.blend(chunks, key, change)
            if total is None:
                total = x.new_zeros(x.shape[0], sums[0].shape[1], *x.shape[2:])
                weight = torch.zeros_like(x[:, :1])
            for whole, part in zip((total, weight), sums, strict=True):
                add_window(whole, part, evaluation.window)
        return None if total is None else total / weight.clamp_min(torch.finfo(weight.dtype).tiny)

    def parts(
        self, key: Hashable, belongs: Callable[[Evaluation, Chunk], bool]
    ) -> Iterator[tuple[Evaluation, list[Chunk]]]:
        """The chunks that belong and have a map of this key: those of the first evaluation of each window.

        A second evaluation of the same conditions at a step is another node's.
        """
        windows = []
        for evaluation in self.evaluations:
            window = evaluation.window and evaluation.window.index_list
            chunks = [c for c in evaluation.chunks if key in c.maps and belongs(evaluation, c)]
            if chunks and window not in windows:
                windows.append(window)
                yield evaluation, chunks


def wrap_calc_cond_batch(options: dict[str, Any], wrapper: Callable[..., list[Tensor]]) -> None:
    """Add a CALC_COND_BATCH wrapper of ours to model_options, in place."""
    comfy.patcher_extension.add_wrapper_with_key(
        WrappersMP.CALC_COND_BATCH, WRAPPER_KEY, wrapper, options, is_model_options=True
    )


RECEIVED = "received"


@dataclass(frozen=True)
class ReceivedReader:
    """Reads the attention received, as the mean of `layers` on the finest of their grids: one channel."""

    layers: Sequence[AttentionLayer]

    @contextmanager
    def reading(
        self,
        model: comfy.model_base.BaseModel,
        x: Tensor,
        sigma: Tensor,
        context: Tensor,
        rows: list[int],
        transformer_options: dict[str, Any],
    ) -> Iterator[tuple[dict[str, Any], Maps]]:
        """Reader.reading."""
        found: list[Tensor] = []
        maps: Maps = {}
        tap = attention_tap(
            self.layers,
            model.diffusion_model,
            x,
            context,
            lambda attention: found.append(received_by(attention, rows)),
        )
        yield tap.install(transformer_options), maps
        if found:
            maps[RECEIVED] = average_on_finest_grid(found).unsqueeze(1)


class AttentionRecorder(Recorder):
    """Records the attention received in `layers`, their mean, at one step.

    choose(labels, count): as Recorder's, of `count` lists.
    """

    def __init__(
        self, layers: Sequence[AttentionLayer], choose: Callable[[list[int], int], list[int]]
    ) -> None:
        super().__init__(ReceivedReader(layers), lambda active, conds, x: choose(list(active), len(conds)))

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

        change, if any, is applied to every chunk's map (B, 1, *grid) before it is placed.
        """
        return self.over_latent(
            RECEIVED,
            lambda evaluation, chunk: chunk.label == evaluation.label_of(branch, conds),
            x,
            change,
        )


def attention_tap(
    layers: Sequence[AttentionLayer],
    diffusion_model: torch.nn.Module,
    x: Tensor,
    context: Tensor,
    read: Callable[[Attention], None],
) -> UNetAttentionTap | JointAttentionTap:
    """The tap for the self-attention in one forward pass of a model."""
    if joint_model(diffusion_model):
        return JointAttentionTap(layers, diffusion_model, x, context, read)
    return UNetAttentionTap(layers, read)


def received_by(attention: Attention, rows: list[int]) -> Tensor:
    """The attention received in the given rows of the batch: (len(rows), *grid)."""
    received = received_attention(*attention.part(rows, attention.image))
    return received.reshape(len(rows), *attention.grid)
