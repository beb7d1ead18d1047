"""Records the mean attention received in chosen layers at one step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...guidance.self_attention import average_on_finest_grid
from ..taps.attention_received import attention_tap, received_by
from ..taps.blocks import AttentionLayer
from .chunks import Evaluation, ForwardPass, MapKey, Maps
from .placements import Conditions
from .step_recorder import Recorder, over_latent

RECEIVED = "received"
MEAN_RECEIVED = MapKey(RECEIVED, "mean")


@dataclass(frozen=True)
class ReceivedReader:
    """Reads the attention received, as the mean of `layers` on the finest of their grids: one channel."""

    layers: Sequence[AttentionLayer]

    @contextmanager
    def reading(self, forward: ForwardPass, rows: list[int]) -> Iterator[tuple[dict[str, Any], Maps]]:
        """Reader.reading."""
        found: list[Tensor] = []
        maps: Maps = {}
        tap = attention_tap(
            self.layers,
            forward.model.diffusion_model,
            forward.x,
            forward.context,
            lambda attention: found.append(received_by(attention, rows)),
        )
        with tap.reading(forward.transformer_options) as transformer_options:
            yield transformer_options, maps
        if found:
            maps[MEAN_RECEIVED] = average_on_finest_grid(found).unsqueeze(1)


class AttentionRecorder(Recorder):
    """Records the attention received at one step, as the mean over `layers`.

    choose(labels, count): as Recorder's, of `count` lists.
    """

    def __init__(
        self, layers: Sequence[AttentionLayer], choose: Callable[[list[int], int], list[int]]
    ) -> None:
        super().__init__(ReceivedReader(layers), lambda active, conds, x: choose(list(active), len(conds)))

    def evaluation_and_label(
        self, branch: int, conds: Sequence[Conditions | None]
    ) -> tuple[Evaluation, int] | None:
        """The first evaluation of conds[branch] at this step, and the number that the list had there.

        Usually that is `branch`, and the model is the sampler's; not so with DualCFGGuider and
        DualModelGuider. None if no condition of the list is active at this step.
        """
        for evaluation in self.evaluations:
            label = evaluation.label_of(branch, conds)
            if label is not None and label in evaluation.active:
                return evaluation, label
        return None

    def prediction(self, branch: int, conds: Sequence[Conditions | None]) -> Tensor | None:
        """What the model predicted for conds[branch] for the whole latent; None in context windows."""
        for evaluation in self.evaluations:
            label = evaluation.label_of(branch, conds)
            if label is not None and label in evaluation.active and evaluation.window is None:
                return evaluation.out[label]
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
        parts = list(
            self.parts(
                MEAN_RECEIVED, lambda evaluation, chunk: chunk.label == evaluation.label_of(branch, conds)
            )
        )
        return over_latent(parts, MEAN_RECEIVED, x, change) if parts else None
