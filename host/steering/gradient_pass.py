"""The forward pass of one chunk in which guidance takes gradients, inside the host's own evaluation.

Depth-Aware Guidance and Classifier Guidance on the same model share it: one forward pass and one graph, and a
backward pass for each.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import comfy.model_patcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..gradients.forward import Features, Products, evaluate_with_gradient
from ..gradients.rows import rows_are_independent
from ..keys import WRAPPER_KEY, ModelExecutor
from ..sampling.crops import conditions_of, whole_chunks
from ..sampling.inner_latent import InnerLatent
from ..sampling.noise_levels import time_at
from ..sampling.out_of_memory import out_of_memory_says
from ..sampling.placements import Placement
from ..taps.named_features import NamedFeatures
from .guided_run import finite_or_zero
from .shift_step import NOT_FINITE, NOT_WHOLE

UNREAD = "the features of the model could not be read"


class GradientReader:
    """The features that a guidance reads in one forward pass, and its gradient there.

    node: its name, for advice. taps: the names of the features that it reads; guiding_taps: those with a
    gradient. loss_scale: factor of the outputs in the backward pass.

    After the pass, `gradient` (B, C, *spatial) is set, or `problem` says why there is none; `overflowed` if
    it was not finite, of all images or of those in `unguided`.
    """

    def __init__(
        self,
        node: str,
        taps: Collection[str],
        guiding_taps: Collection[str],
        loss_scale: float,
        checkpointing: bool,
    ) -> None:
        self.node = node
        self.taps = taps
        self.guiding_taps = guiding_taps
        self.loss_scale = loss_scale
        self.checkpointing = checkpointing
        self.gradient: Tensor | None = None
        self.problem: str | None = UNREAD
        self.overflowed = False
        self.unguided: list[int] = []

    def products(
        self, features: Mapping[str, Tensor], time: Tensor, size: Sequence[int]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Outputs that depend on the features, and their cotangents at the loss scale.

        time (B,); size: of the latent, height and width.
        """
        raise NotImplementedError

    def take(self, gradient: Tensor) -> None:
        """Sets `gradient` from the result of the backward pass, which is at the loss scale."""
        raise NotImplementedError

    def finite(self, *tensors: Tensor) -> list[Tensor]:
        """The tensors (B, ...), with zeros for images in which one is not finite; [] if no image is left."""
        found, unguided = finite_or_zero(*tensors)
        self.overflowed = bool(unguided)
        self.problem = NOT_FINITE if unguided else None
        if len(unguided) == len(tensors[0]):
            return []
        self.unguided = unguided
        return found


class GradientPass:
    """The pass of one chunk, a condition for the whole latent batch, for one reader or more.

    placements: of all conditions that are active.
    """

    def __init__(
        self,
        reader: GradientReader,
        chunk: tuple[int, Any],
        latent: Tensor,
        placements: Mapping[int, Mapping[Any, Placement]],
    ) -> None:
        self.readers = [reader]
        self.chunk = chunk
        self.latent = latent
        self.placements = placements
        self.done = False

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of model_options with `apply_model` in front of every other APPLY_MODEL wrapper.

        It may split a pass in two; the wrappers of other nodes then act on each. If another guidance has
        already put a pass of this chunk there, that pass gets this reader too.
        """
        options = comfy.model_patcher.create_model_options_clone(model_options)
        wrappers = options["transformer_options"].setdefault("wrappers", {})
        others = wrappers.get(WrappersMP.APPLY_MODEL, {})
        for wrapper in others.get(WRAPPER_KEY, []):
            shared = getattr(wrapper, "__self__", None)
            if isinstance(shared, GradientPass) and shared.chunk == self.chunk:
                shared.readers += self.readers
                return model_options
        ours = [self.apply_model, *others.get(WRAPPER_KEY, [])]
        wrappers[WrappersMP.APPLY_MODEL] = {WRAPPER_KEY: ours} | {
            key: value for key, value in others.items() if key != WRAPPER_KEY
        }
        return options

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
        """APPLY_MODEL wrapper: one forward pass."""
        if self.done or self.chunk not in conditions_of(transformer_options, self.placements):
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        chunks = whole_chunks(x, c_crossattn, transformer_options, self.latent, self.placements)
        if self.chunk not in chunks:
            if not chunks:
                for reader in self.readers:
                    reader.problem = NOT_WHOLE
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        self.done = True
        # Wrappers of other nodes may have dropped the labels.
        labels, uuids = map(list, zip(*chunks, strict=True))
        transformer_options = transformer_options | {"cond_or_uncond": labels, "uuids": uuids}
        batch = len(self.latent)
        start = chunks.index(self.chunk) * batch
        rows = range(start, start + batch)
        model = executor.class_obj
        # With several GPUs the pass may run on another one than the heads, which are where the latent is.
        device = self.latent.device
        time = time_at(model.model_sampling, t[rows.start : rows.stop]).clone().to(device)
        taps = {name for reader in self.readers for name in reader.taps}
        guiding_taps = {name for reader in self.readers for name in reader.guiding_taps}
        checkpointing = any(reader.checkpointing for reader in self.readers)
        apart = len(chunks) == 1 or rows_are_independent(model, transformer_options)
        inner = InnerLatent()
        named = NamedFeatures(model.diffusion_model, taps, rows=None if apart else list(rows))

        def products_of(reader: GradientReader) -> Products:
            def products(features: Features) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
                there = {name: feature.to(device) for name, feature in named.with_time(features).items()}
                return reader.products(there, time, x.shape[-2:])

            return products

        with out_of_memory_says(out_of_memory(self.readers[0].node, checkpointing, apart)):
            out, gradients = evaluate_with_gradient(
                executor,
                rows,
                named.layers,
                [products_of(reader) for reader in self.readers],
                {
                    "x": x,
                    "t": t,
                    "c_concat": c_concat,
                    "c_crossattn": c_crossattn,
                    "control": control,
                    "transformer_options": inner.options(named.options(transformer_options)),
                    **kwargs,
                },
                apart=apart,
                constant=[layer for layer, name in named.names.items() if name not in guiding_taps],
                checkpointing=checkpointing,
            )
        for reader, gradient in zip(self.readers, gradients, strict=True):
            if inner.changed:
                reader.problem = NOT_WHOLE
            elif gradient is not None:
                reader.take(gradient.to(device))
        return out


def out_of_memory(node: str, checkpointing: bool, apart: bool) -> str:
    """Advice if a step with a gradient does not fit into memory."""
    advice = ["lower the resolution or the batch size"]
    if not checkpointing:
        advice.insert(0, "turn on checkpointing")
    if not apart:
        advice.append("remove other nodes that patch the model, which keep both prompts in the gradient")
    return (
        f"{node} ran out of memory while taking its gradient: {', or '.join(advice)}. A higher every_n_steps "
        "saves time, but no memory."
    )
