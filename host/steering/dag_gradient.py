"""The gradient of Depth-Aware Guidance, taken in the host's own forward pass of one chunk."""

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...guidance import depth_aware as dag
from ..gradients.forward import Features, evaluate_with_gradient
from ..gradients.rows import rows_are_independent
from ..keys import WRAPPER_KEY, ModelExecutor
from ..sampling.crops import conditions_of, evaluates_whole
from ..sampling.inner_latent import InnerLatent
from ..sampling.out_of_memory import out_of_memory_says
from ..sampling.placements import Placement
from ..sampling.schedule import time_at
from ..taps.named_features import NamedFeatures
from .dag_losses import ROBUST, DepthAwareSettings, Networks, losses
from .dag_step import NOT_WHOLE
from .guided_run import finite_images


class ChunkGradient:
    """The gradient of one chunk, a condition for the whole latent batch, in the pass that holds it.

    placements: of all conditions that are active. seed: of the noise that the prior adds.
    loss_scale: what the losses are multiplied by in the backward pass.

    After the pass, `gradient` (B, C, *spatial) and `depth` are set, or `problem` says why there is no
    gradient; `overflowed` if it was not finite, of all images or of those in `unguided`.
    """

    def __init__(
        self,
        settings: DepthAwareSettings,
        networks: Networks,
        seed: int,
        loss_scale: float,
        chunk: tuple[int, Any],
        latent: Tensor,
        placements: Mapping[int, Mapping[Any, Placement]],
    ) -> None:
        self.settings = settings
        self.networks = networks
        self.seed = seed
        self.loss_scale = loss_scale
        self.chunk = chunk
        self.latent = latent
        self.placements = placements
        self.done = False
        self.gradient: Tensor | None = None
        self.depth: Tensor | None = None
        self.pull_size: Tensor | None = None
        self.problem: str | None = "the features of the model could not be read"
        self.overflowed = False
        self.unguided: list[int] = []

    def options(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of model_options with `apply_model` in front of every other APPLY_MODEL wrapper.

        It may split a pass in two; the wrappers of other nodes then act on each.
        """
        options = comfy.model_patcher.create_model_options_clone(model_options)
        wrappers = options["transformer_options"].setdefault("wrappers", {})
        others = wrappers.get(WrappersMP.APPLY_MODEL, {})
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
        chunks, batch = conditions_of(transformer_options), len(self.latent)
        if self.done or self.chunk not in chunks:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        if not evaluates_whole(self.chunk, x, c_crossattn, transformer_options, self.latent, self.placements):
            self.problem = NOT_WHOLE
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        self.done = True
        start = chunks.index(self.chunk) * batch
        rows = range(start, start + batch)
        settings, model = self.settings, executor.class_obj
        time = time_at(model.model_sampling, t[rows.start : rows.stop]).clone()
        taps, guiding_taps = map(self.taps, (settings.branches, settings.guiding_branches))
        apart = len(chunks) == 1 or rows_are_independent(model, transformer_options)
        inner = InnerLatent()
        named = NamedFeatures(model.diffusion_model, taps, rows=None if apart else list(rows))

        def products(features: Features) -> tuple[list[Tensor], list[Tensor]]:
            seeded = torch.Generator().manual_seed(self.seed)
            return self.products(named.with_time(features), time, x.shape[-2:], seeded)

        with out_of_memory_says(out_of_memory(settings.checkpointing, apart)):
            out, gradient = evaluate_with_gradient(
                executor,
                rows,
                named.layers,
                products,
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
                checkpointing=settings.checkpointing,
            )
        if inner.changed:
            self.problem = NOT_WHOLE
        else:
            self.take(gradient)
        return out

    def taps(self, branches: Sequence[str]) -> set[str]:
        """The names of what these branches of the head read."""
        return {name for branch in branches for name in self.networks.head.branch_taps[branch]}

    def products(
        self, features: dict[str, Tensor], time: Tensor, size: Sequence[int], seeded: torch.Generator
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Depth maps from the features, and what the losses ask of them, at the loss scale."""
        branches, guiding = self.settings.branches, self.settings.guiding_branches
        maps = self.networks.head.branches(features, time, size, branches)
        self.depth = maps[0].detach()
        asked = dag.pull(
            maps[0],
            maps[1] if len(maps) > 1 else None,
            list(losses(self.settings, self.networks, maps[0], seeded)),
            normalise=self.settings.mode == ROBUST,
        )
        self.pull_size = asked.size
        pairs = zip(branches, maps, asked.cotangents(self.loss_scale), strict=True)
        outputs, cotangents = zip(*((d, c) for branch, d, c in pairs if branch in guiding), strict=True)
        return list(outputs), list(cotangents)

    def take(self, gradient: Tensor | None) -> None:
        """What the backward pass returned, at the loss scale."""
        if gradient is None or self.pull_size is None:
            return
        size = self.pull_size.to(gradient).view(-1, *[1] * (gradient.ndim - 1))
        finite = finite_images(gradient, size)
        self.problem, self.overflowed = None, not finite.all()
        if self.overflowed:
            self.problem = "its gradient is not finite"
            if not finite.any():
                return
            self.unguided = (~finite).flatten().nonzero().flatten().tolist()
            gradient, size = torch.where(finite, gradient, 0), torch.where(finite, size, 0)
        if self.settings.mode == ROBUST:
            self.gradient = dag.direction(gradient, size)
        else:
            self.gradient = gradient * (size / self.loss_scale)


def out_of_memory(checkpointing: bool, apart: bool) -> str:
    """What to change when a step with a gradient does not fit into memory."""
    advice = ["lower the resolution or the batch size"]
    if not checkpointing:
        advice.insert(0, "turn on checkpointing")
    if not apart:
        advice.append("remove other nodes that patch the model, which keep both prompts in the gradient")
    return (
        f"Depth-Aware Guidance ran out of memory while taking its gradient: {', or '.join(advice)}. "
        "A higher every_n_steps saves time, but no memory."
    )
