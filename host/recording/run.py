"""Fills a record while a model samples.

The node attaches a Recording, which is immutable, to the model. As an OUTER_SAMPLE wrapper it opens a run in
the record and makes this run's RecordedRun. As a PREDICT_NOISE wrapper, that records the evaluations that
begin a step, and passes every other evaluation through untouched. Only the record outlives a run.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..depth.estimation import pixels_per_latent
from ..keys import GuiderExecutor, for_this_run
from ..live_preview import LivePreview
from ..sampling.chunks import Chunk, Evaluation, Reader
from ..sampling.crops import UNTRACED
from ..sampling.guiders import list_names, positive_first
from ..sampling.placements import Conditions, Placement, full_frame_condition
from ..sampling.schedule import first_sigmas, sigma_of, step_of
from ..sampling.sigma_ranges import SigmaRange, counted_from
from ..sampling.step_recorder import Recorder
from .executing import executing
from .readers import DEPTH, PROMPT, RECEIVED, DepthReader, Readers
from .recorded_step import Source, make_step, map_of_layer, picture_of, without_repeats
from .records import Record, Run

AT_CFG_1 = " At cfg 1 the sampler leaves the negative out: set branch to positive, or cfg above 1."
LARGEST_HALF = torch.finfo(torch.float16).max


@dataclass(frozen=True, eq=False)  # other nodes look for wrappers in lists and sets
class Recording:
    """OUTER_SAMPLE wrapper: records a run.

    branches: names of the guider's condition lists to record; () is all. At most max_steps of the steps
    between the percentages are recorded, evenly spaced. preview_node: id of the node that shows the last
    step, None for no preview. depth: reader of the depth, from the condition that covers the whole image,
    whatever the branches.
    """

    reader: Reader
    record: Record[Any]
    branches: tuple[str, ...]
    start_percent: float
    end_percent: float
    max_steps: int
    preview_node: str | None
    depth: DepthReader | None = None

    @property
    def all_readers(self) -> Reader:
        """What is read of a pass."""
        return self.reader if self.depth is None else Readers((self.reader, self.depth))

    def __call__(
        self,
        executor: GuiderExecutor,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Run the sampling."""
        guider = executor.class_obj
        model_sampling = guider.model_patcher.get_model_object("model_sampling")
        within = SigmaRange.from_percent(
            model_sampling,
            self.start_percent,
            self.end_percent,
            counted_from(model_sampling, noise, latent_image, sigmas),
        )
        in_range = [number for number, sigma in enumerate(sigmas[:-1].tolist()) if sigma in within]
        scale = pixels_per_latent(guider.model_patcher)
        height, width = noise.shape[-2:]
        run: Run[Any] = Run(
            executing(),
            tuple(noise.shape),
            (height * scale, width * scale),
            references=frozenset(
                (branch, number)
                for branch, conds in guider.conds.items()
                for number, cond in enumerate(conds)
                if cond.get("reference_latents")
            ),
        )
        self.record.begin(run)
        first = first_sigmas(sampler, sigmas)
        recorded = RecordedRun(self, guider, run, sigmas.cpu(), first, evenly(in_range, self.max_steps))
        try:
            with for_this_run(guider, WrappersMP.PREDICT_NOISE, recorded.predict_noise):
                samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            recorded.preview.end()
        run.samples = samples.cpu()
        return samples


class RecordedRun:
    """The state of a recording run.

    first: schedule.first_sigmas. numbers: the steps to record.
    """

    def __init__(
        self,
        recording: Recording,
        guider: Any,
        run: Run[Any],
        sigmas: Tensor,
        first: Tensor,
        numbers: Sequence[int],
    ) -> None:
        self.recording = recording
        self.guider = guider
        self.run = run
        self.sigmas = sigmas
        self.first_sigmas = first
        self.numbers = numbers
        self.preview = LivePreview(recording.preview_node, len(numbers))
        self.warned = False

    def predict_noise(
        self,
        executor: GuiderExecutor,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        seed: int | None = None,
    ) -> Tensor:
        """PREDICT_NOISE wrapper: one evaluation at x and sigma that the sampler asks for."""
        sigma = sigma_of(timestep, self.sigmas, self.first_sigmas)
        number = step_of(sigma, self.sigmas)
        if number not in self.numbers or not self.begins(number, sigma):
            return executor(x, timestep, model_options, seed)
        recorder = Recorder(self.recording.all_readers, self.choose)
        out = executor(x, timestep, recorder.options(model_options), seed)
        traced = recorder.traced(x)
        read = self.maps(recorder, x) if traced else {}
        maps = {source: found for source, found in read.items() if found.isfinite().all()}
        if maps:
            step = make_step(number, sigma, maps)
            self.run.put(step)
            self.preview.show(len(self.run.steps), lambda: picture_of(step, self.run.image_size))
        evaluations = recorder.evaluations
        if evaluations and not any(evaluation.placements for evaluation in evaluations):
            missing = f"no {' or '.join(self.branches)} prompt was evaluated"
            self.run.unread = f"In the steps of the range, {missing}."
            if "positive" not in self.branches:
                self.run.unread += AT_CFG_1
            self.warn("nothing", sigma, missing)
        elif not traced:
            self.warn("nothing", sigma, UNTRACED)
        elif not read:
            self.warn("nothing", sigma, "the blocks could not be read")
        elif len(maps) < len(read):
            layers = dict.fromkeys(source.key.layer for source in read if source not in maps)
            self.warn(f"nothing of {', '.join(layers)}", sigma, "there the model's numbers are not finite")
        return out

    def warn(self, what: str, sigma: float, why: str) -> None:
        """Log what was not recorded, once in a run."""
        if not self.warned:
            logging.warning(
                "%s recorded %s at sigma %.3f: %s.", self.recording.record.title, what, sigma, why
            )
            self.warned = True

    def begins(self, number: int, sigma: float) -> bool:
        """Whether to keep this evaluation of a step.

        The first is kept. But Heun's method evaluates the sigma of the next step in advance, so a later
        evaluation at exactly the first sigma of the step replaces it.
        """
        first = all(step.number != number for step in self.run.steps)
        return first or abs(sigma - float(self.sigmas[number])) <= 1e-4 * sigma

    def choose(
        self, placements: Mapping[int, Mapping[Any, Placement]], conds: Sequence[Conditions | None], x: Tensor
    ) -> list[int]:
        """The lists of conditions to record: Recorder.choose."""
        names = list_names(conds, self.guider.conds)
        known = {
            label: placements[label]
            for label in positive_first(names)
            if label in placements and names[label] in self.guider.conds
        }
        depth = full_frame_condition(known, x) if self.recording.depth is not None else None
        return [label for label in known if names[label] in self.branches or (depth and label == depth[0])]

    @property
    def branches(self) -> Collection[str]:
        """The branches that are recorded completely."""
        return self.recording.branches or self.guider.conds

    def maps(self, recorder: Recorder, x: Tensor) -> dict[Source, Tensor]:
        """Everything that was read at a step, over the whole latent, on the CPU.

        In float16, but float32 for the attention received: it is small, and a mask compares it with a
        threshold close to the value of flat attention.
        """
        sources = dict.fromkeys(
            source
            for evaluation in recorder.evaluations
            for chunk in evaluation.chunks
            for source in self.sources(evaluation, chunk)
        )
        return {source: self.map(recorder, source, x) for source in sources}

    def map(self, recorder: Recorder, source: Source, x: Tensor) -> Tensor:
        """The map of one source, as `maps` returns it."""
        whole = map_of_layer(recorder, source.key, lambda *of: source in self.sources(*of), x)
        if source.key.kind == PROMPT:
            whole = without_repeats(whole, self.guider.conds[source.branch][source.condition])
        if source.key.kind != RECEIVED:
            whole = whole.clamp(-LARGEST_HALF, LARGEST_HALF).half()
        return whole.cpu()

    def sources(self, evaluation: Evaluation, chunk: Chunk) -> list[Source]:
        """What the maps of a chunk are. Prompts are kept apart, everything else of a branch is blended.

        Depth comes from a single condition.
        """
        branch = list_names(evaluation.conds, self.guider.conds)[chunk.label]
        uuids = [cond["uuid"] for cond in self.guider.conds.get(branch, ())]
        if branch is None or chunk.uuid not in uuids:  # a condition that another node has put in
            return []
        number = uuids.index(chunk.uuid)
        return [
            Source(key, branch, number if key.kind == PROMPT else 0)
            for key in chunk.maps
            if (tells_depth(evaluation, chunk) if key.kind == DEPTH else branch in self.branches)
        ]


def tells_depth(evaluation: Evaluation, chunk: Chunk) -> bool:
    """Whether depth is read from this chunk: its condition covers the whole image."""
    return (chunk.label, chunk.uuid) == full_frame_condition(evaluation.placements, evaluation.x)


def evenly(numbers: Sequence[int], count: int) -> list[int]:
    """At most `count` of the numbers, evenly spread, with the last, and with the first where count > 1."""
    if len(numbers) <= count:
        return list(numbers)
    if count == 1:
        return [numbers[-1]]
    return [numbers[round(i * (len(numbers) - 1) / (count - 1))] for i in range(count)]
