"""Fills a record while a model samples.

The node attaches a Recording, which is immutable, to the model. As an OUTER_SAMPLE wrapper it opens a run in
the record and makes this run's RecordedRun. As a PREDICT_NOISE wrapper, that records the evaluations that
begin a step, and passes every other evaluation through untouched. Only the record outlives a run.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...pictures.live import attention_picture, depth_picture, feature_picture
from ..depth.estimation import pixels_per_latent
from ..keys import GuiderExecutor, for_this_run
from ..live_preview import LivePreview
from ..sampling.chunks import Chunk, Evaluation, MapKey, Reader
from ..sampling.crops import UNTRACED
from ..sampling.guiders import list_names, positive_first
from ..sampling.placements import Conditions, Placement, full_frame_condition
from ..sampling.schedule import SigmaRange, counted_from, step_of
from ..sampling.step_recorder import Recorder, over_latent
from .executing import executing
from .readers import DEPTH, FEATURES, PROMPT, RECEIVED, DepthReader, Readers
from .records import AttentionStep, FeatureStep, Record, Run

LARGEST = torch.finfo(torch.float16).max


class Source(NamedTuple):
    """The origin of a recorded map: its key, its branch, and the number of its prompt there, else 0."""

    key: MapKey
    branch: str
    condition: int


@dataclass(frozen=True)
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
        run: Run[Any] = Run(executing(), tuple(noise.shape), (height * scale, width * scale))
        self.record.begin(run)
        recorded = RecordedRun(self, guider, run, sigmas.cpu(), evenly(in_range, self.max_steps))
        try:
            with for_this_run(guider, WrappersMP.PREDICT_NOISE, recorded.predict_noise):
                return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            recorded.preview.end()


class RecordedRun:
    """The state of a recording run.

    numbers: the steps to record.
    """

    def __init__(
        self, recording: Recording, guider: Any, run: Run[Any], sigmas: Tensor, numbers: Sequence[int]
    ) -> None:
        self.recording = recording
        self.guider = guider
        self.run = run
        self.sigmas = sigmas
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
        sigma = float(timestep.max())
        number = step_of(sigma, self.sigmas)
        if number not in self.numbers or not self.begins(number, sigma):
            return executor(x, timestep, model_options, seed)
        recorder = Recorder(self.recording.all_readers, self.choose)
        out = executor(x, timestep, recorder.options(model_options), seed)
        traced = recorder.traced(x)
        maps = self.maps(recorder, x) if traced else {}
        if maps:
            step = step_made_of(number, sigma, maps)
            self.run.put(step)
            self.preview.show(len(self.run.steps), lambda: picture_of(step, self.run.image_size))
        elif not self.warned:
            logging.warning(
                "%s recorded nothing at sigma %.3f: %s.",
                self.recording.record.title,
                sigma,
                "the blocks could not be read" if traced else UNTRACED,
            )
            self.warned = True
        return out

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
        found = {}
        for source in sources:
            whole = of_layer(recorder, source.key, lambda *of, source=source: source in self.sources(*of), x)
            if source.key.kind == PROMPT:
                whole = once(whole, self.guider.conds[source.branch][source.condition])
            if source.key.kind != RECEIVED:
                whole = whole.clamp(-LARGEST, LARGEST).half()
            found[source] = whole.cpu()
        return found

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


def step_made_of(number: int, sigma: float, maps: Mapping[Source, Tensor]) -> AttentionStep | FeatureStep:
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


def evenly(numbers: Sequence[int], count: int) -> list[int]:
    """At most `count` of the numbers, evenly spread, with the last, and with the first where count > 1."""
    if len(numbers) <= count:
        return list(numbers)
    if count == 1:
        return [numbers[-1]]
    return [numbers[round(i * (len(numbers) - 1) / (count - 1))] for i in range(count)]


def of_layer(
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


def once(given: Tensor, condition: dict[str, Any]) -> Tensor:
    """The attention given to a prompt (B, tokens, *grid), once for each of its tokens.

    The host repeats a prompt that shares a pass with a longer one; its tokens share their weight then.
    """
    tokens = condition["model_conds"]["c_crossattn"].cond.shape[1]
    return given.unflatten(1, (-1, tokens)).sum(dim=1) if given.shape[1] % tokens == 0 else given
