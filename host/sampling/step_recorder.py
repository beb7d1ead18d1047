"""Records one step of the model over the whole latent; merges context windows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..keys import add_wrapper
from .chunks import Chunk, Evaluation, MapKey, Reader, add_window
from .placements import Conditions, Placement, placements_of, precision
from .random_state import random_state


class Recorder:
    """Records what `reader` reads at one step; made for it and dropped with it.

    choose(placements, conds, x) says which condition lists to record, out of those with an active condition
    at this step. placements: the active conditions' own, by number of the list and uuid. What is evaluated
    after stop() is not recorded.
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
        """A copy of model_options in which the sampler's evaluation is recorded, but none of another node."""
        options = comfy.model_patcher.create_model_options_clone(model_options)
        add_wrapper(options, WrappersMP.CALC_COND_BATCH, self.calc_cond_batch)
        for function in ("sampler_pre_cfg_function", "sampler_post_cfg_function"):
            options.setdefault(function, []).insert(0, self.after_evaluation)
        return options

    def after_evaluation(self, args: dict[str, Any]) -> Any:
        """The first sampler_pre_cfg_function and sampler_post_cfg_function: end the recording."""
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
            active,
            self.choose(active, conds, x_in),
            model_options["transformer_options"].get("context_window"),
            random_state(x_in.device),
        )
        options = comfy.model_patcher.create_model_options_clone(model_options)
        add_wrapper(options, WrappersMP.APPLY_MODEL, evaluation.apply_model)
        evaluation.out = executor(model, conds, x_in, timestep, options)
        self.evaluations.append(evaluation)
        return evaluation.out

    def stop(self) -> None:
        """End the recording: the passes that follow in this step are other nodes'."""
        self.stopped = True

    def traced(self, x: Tensor) -> bool:
        """Whether the place of the recorded passes in the latent x of the step is known.

        Drops the evaluations of other latents: another node may evaluate crops of x one by one.
        """
        self.stop()
        of_x = [e for e in self.evaluations if e.window is not None or e.x is x or torch.equal(e.x, x)]
        dropped = len(of_x) < len(self.evaluations)
        self.evaluations = of_x
        return not any(e.untraced for e in of_x) and (bool(of_x) or not dropped)

    def parts(
        self, key: MapKey, belongs: Callable[[Evaluation, Chunk], bool]
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


def over_latent(
    parts: Sequence[tuple[Evaluation, Sequence[Chunk]]],
    key: MapKey,
    x: Tensor,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The blended maps of this key, over the whole latent x: (B, C, *spatial).

    parts: of Recorder.parts, at least one. change, if any, is applied to every chunk's map before it is
    placed.
    """
    _, chunks = parts[0]
    total = x.new_zeros(x.shape[0], chunks[0].maps[key].shape[1], *x.shape[2:], dtype=precision(x))
    weight = torch.zeros_like(total[:, :1])
    for evaluation, chunks in parts:
        for whole, part in zip((total, weight), evaluation.blend(chunks, key, change), strict=True):
            add_window(whole, part, evaluation.window)
    return total / weight.clamp_min(torch.finfo(weight.dtype).tiny)
