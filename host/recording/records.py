"""The output of the Record nodes: the runs of a recorded model, told apart by the node that sampled.

A record is the only thing that outlives the runs. It holds maps on the CPU. It is an output of a node, so it
lives as long as the host keeps that output.

    Record Attention --MODEL--> sampler --LATENT--> map node
            `--------------------record--------------^

The map node takes the LATENT so that it runs after the sampler, and to choose the run: run_for takes the one
with this result, or follows that link upstream to the nearest node that has a run. A node that samples again
replaces its run; a node that the host takes from its cache keeps it. The cache may also give the result of a
run that was replaced: a record knows those, too. Nothing in this file needs the host.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

# Runs that a record holds, the newest. Samplers in loops have a new id at every turn.
RUNS_KEPT = 8
# Results that a record keeps of runs that it no longer holds. Only memory limits the host's own cache.
RESULTS_KEPT = 16


class Execution(NamedTuple):
    """A call of a node by the host: the prompt, the node in it, the item of a list of inputs."""

    prompt_id: str | None = None
    node_id: str | None = None
    list_index: int | None = None


@dataclass(frozen=True)
class AttentionStep:
    """The attention at one step of the schedule.

    number from 0, in the schedule of the run; sigma of the evaluation. Maps are on the CPU.

    received[branch, layer] (B, *grid), float32: what each image token receives in self-attention; the mean
    over the grid is 1 (guidance/self_attention.py).
    prompt[branch, layer, condition] (B, tokens, *grid), float16: the softmax weight, averaged over the heads,
    that each image token gives to each token of the prompt. In a UNet they sum to 1 over the tokens; in joint
    models the image's own tokens have a share of it.

    branch: the guider's name for a list of conditions, "positive" or "negative" with the stock samplers.
    layer: "m0.0", "u1.0", "b12": names that the `blocks` input takes. condition: the number of the prompt in
    its branch, 0 unless several are combined; outside a prompt's area its map is 0.
    grid: (h, w) of the layer, (frames, h, w) for video latents, over the whole latent.
    """

    number: int
    sigma: float
    received: Mapping[tuple[str, str], Tensor]
    prompt: Mapping[tuple[str, str, int], Tensor]


@dataclass(frozen=True)
class FeatureStep:
    """The features at one step of the schedule: features[branch, layer] (B, C, *grid), float16, on the CPU.

    number, sigma, branch, grid as in AttentionStep; layer as in blocks.py. depth (B, 1, h, w): what a depth
    head read, relative inverse depth at the latent's size; None without a head, or where no prompt covers the
    whole image.
    """

    number: int
    sigma: float
    features: Mapping[tuple[str, str], Tensor]
    depth: Tensor | None = None


Step = TypeVar("Step", bound=AttentionStep | FeatureStep)


@dataclass(eq=False)
class Run(Generic[Step]):
    """One sampling run.

    latent_shape (B, C, *spatial, h, w); image_size (height, width) of the decoded image, in pixels; steps in
    the order of the schedule, one each; they may be fewer than the schedule has. samples: the result, on the
    CPU; None while the run lasts. references: the branch and number of each condition with reference images.
    unread: why there is no step and what to do, in sentences; empty where that is not known.
    """

    execution: Execution
    latent_shape: tuple[int, ...]
    image_size: tuple[int, int]
    steps: list[Step] = field(default_factory=list)
    samples: Tensor | None = None
    references: frozenset[tuple[str, int]] = frozenset()
    unread: str = ""

    def gave(self, samples: Any) -> bool:
        """Whether these samples of a LATENT are the result of this run.

        The node that sampled may have another id by now: the host takes its output from the cache for any
        node with the same inputs. The samples of a video with sound are no tensor.
        """
        return self.samples is not None and _is_result(samples, self.samples)

    def put(self, step: Step) -> None:
        """Insert a step in order. It replaces a step with the same number."""
        others = [s for s in self.steps if s.number != step.number]
        self.steps = sorted([*others, step], key=lambda s: s.number)


@dataclass
class Record(Generic[Step]):
    """The runs of a recorded model, the newest RUNS_KEPT of them, oldest first.

    replaced: the results of runs before them.
    """

    title: ClassVar[str]
    runs: list[Run[Step]] = field(default_factory=list)
    replaced: deque[Tensor] = field(default_factory=partial(deque, maxlen=RESULTS_KEPT))

    def begin(self, run: Run[Step]) -> None:
        """Add a run that starts. It replaces the earlier runs of its node.

        Several runs of a node in one prompt stay side by side only where they belong to the items of a list.
        """
        kept = [r for r in self.runs if not _replaces(run.execution, r.execution)][1 - RUNS_KEPT :]
        self.replaced.extend(r.samples for r in self.runs if r not in kept and r.samples is not None)
        self.runs = [*kept, run]

    def run_for(
        self,
        node_id: str | None,
        get_node: Callable[[str], Mapping[str, Any]] | None,
        list_index: int | None = None,
        samples: Any = None,
        input_name: str = "latent",
    ) -> Run[Step]:
        """The run that made the LATENT wired into a node.

        node_id: the map node. get_node(id): a node of the prompt, {"inputs": {name: value or [id, slot]}}, as
        the host's DynamicPrompt.get_node. list_index: the item of a list that the map node is called for.
        samples: of the LATENT. Raises ValueError if there is no such run, or no step in it, and if later runs
        have replaced it.
        """
        if not self.runs:
            raise ValueError(
                f"{self.title}: nothing is recorded. Connect its MODEL to a sampler, and the LATENT of "
                "that sampler to the node that shows the record."
            )
        known = [run for run in self.runs if run.gave(samples)]
        if not known and any(_is_result(samples, result) for result in self.replaced):
            raise self._replaced()
        found = runs = known or self.runs
        if len(runs) > 1:
            found = known
            if get_node is not None and node_id is not None:
                link = get_node(node_id)["inputs"].get(input_name)
                found = (nearest_upstream(link, get_node, runs) if is_link(link) else []) or known
        if not found:
            raise ValueError(
                f"{self.title}: the LATENT comes from none of the {len(self.runs)} samplers that were "
                "recorded. Connect the LATENT of a sampler that gets this node's MODEL."
            )
        if not known and _begins_after(found, list_index):
            raise self._replaced()
        run = next((run for run in found if run.execution.list_index == list_index), found[-1])
        if not run.steps:
            unread = run.unread or (
                "Let start_percent and end_percent hold a step; if they do, another node computes these "
                "blocks in its own way: choose others."
            )
            raise ValueError(f"{self.title}: nothing was read of this sampler's run. {unread}")
        return run

    def _replaced(self) -> ValueError:
        return ValueError(
            f"{self.title}: later runs have replaced what was recorded of this LATENT. The last {RUNS_KEPT} "
            f"are kept, and each item of a list is one: show at most {RUNS_KEPT} items. If the LATENT comes "
            f"from ComfyUI's cache, change a setting of {self.title}, so that it is sampled again."
        )


class AttentionRecord(Record[AttentionStep]):
    """What Record Attention has recorded."""

    title = "Record Attention"


class FeatureRecord(Record[FeatureStep]):
    """What Record Features has recorded."""

    title = "Record Features"


def _is_result(samples: Any, result: Tensor) -> bool:
    if not isinstance(samples, Tensor) or samples.shape != result.shape:
        return False
    return torch.equal(result.to(samples), samples)


def _replaces(new: Execution, old: Execution) -> bool:
    if new.node_id != old.node_id:
        return False
    return new.prompt_id != old.prompt_id or new.list_index == old.list_index


def _begins_after(runs: Sequence[Run[Any]], list_index: int | None) -> bool:
    """Whether the runs of a list are kept, but not that of an item before them."""
    kept = [run.execution.list_index for run in runs if run.execution.list_index is not None]
    return list_index is not None and bool(kept) and list_index < min(kept)


def is_link(value: Any) -> bool:
    """Whether an input of a prompt's node is an output of another: [node id, slot]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def nearest_upstream(
    link: list[Any], get_node: Callable[[str], Mapping[str, Any]], runs: list[Run[Any]]
) -> list[Run[Any]]:
    """The runs of the node nearest to a link, breadth first against the wires; [] where there are none.

    A node that expands into others while the host executes ("7") has the runs of those ("7.0.0.3").
    """
    queue, seen = deque([link[0]]), {link[0]}
    while queue:
        node_id = queue.popleft()
        of_node = [
            run
            for run in runs
            if run.execution.node_id == node_id or str(run.execution.node_id).startswith(f"{node_id}.")
        ]
        if of_node:
            return of_node
        for value in get_node(node_id)["inputs"].values():
            if is_link(value) and value[0] not in seen:
                seen.add(value[0])
                queue.append(value[0])
    return []
