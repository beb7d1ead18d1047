"""Training a depth head on the features of a frozen model (DAG, section 3.2).

    loss       L1 to the label, of the strong and the weak branch together
    t          uniform below 800 of 1000: beyond, depth can hardly be read
    held out   a part of the pairs, which selects the best state and gives the figures

Everything random comes from the seed. The caller provides the features; nothing here knows a UNet.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .architectures import DepthNetwork
from .fitting import Features, Interruption, draw_times, fit, read
from .metrics import DepthMetrics, DepthRange, fit_to_label, measure

LAST_TIME = 800
# The times at which held-out images are measured.
CHECKED_TIMES = (50, 200, 500, 800)
CHECKED_IMAGES = 16
SHOWN_IMAGES = 4
# Images whose depth a head carries as its calibration: held-out ones, and others if these are fewer.
MOST_READ, FEWEST_READ = 32, 8

# Weight of the plain loss added to the aligned one, which alone would accept near = 0 and far = 1.
ANCHOR = 0.1

Figures = dict[str, dict[int, DepthMetrics]]


@dataclass(frozen=True)
class TrainingSettings:
    """aligned: compare after metrics.fit_to_label. held_out: share of the pairs, at least one."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    depth_range: DepthRange
    aligned: bool = False
    held_out: float = 0.1


@dataclass(frozen=True)
class TrainingResult:
    """losses: of every step, mean of the branches. best_step: after how many steps the kept state was.

    figures: of held-out images, branch -> time -> metrics. shown: some of these images' indices; estimates:
    the first branch's of them, (len(shown), times, h, w), at CHECKED_TIMES. readings: branch -> (n, times, h,
    w), the depth of n images, held-out ones first. All are empty where the measurement was interrupted.
    interrupted: in training or in measurement.
    """

    losses: list[float]
    best_step: int
    figures: Figures
    held_out: list[int]
    shown: list[int]
    estimates: Tensor
    readings: Mapping[str, Tensor]
    interrupted: bool


@torch.inference_mode(False)
@torch.enable_grad()
def train(
    network: DepthNetwork,
    features: Features,
    labels: Tensor,
    settings: TrainingSettings,
    on_step: Callable[[int, list[float]], None],
    interruption: Interruption = (),
) -> TrainingResult:
    """Train a network in place; it is left on the CPU, in evaluation mode, in its best state.

    labels (N, 1, h, w), relative inverse depth, on the device to train on; N is 2 or more. on_step is called
    with the number of steps done and the losses. interruption: an exception of features or on_step that ends
    the training, and keeps the best state, once a step is done; before that it is raised.
    """
    labels = labels.clone()
    network.to(labels.device)
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(labels), generator=generator)
    count = max(1, round(settings.held_out * len(labels)))
    held_out, rest = order[:count], order[count:]
    evaluate = Evaluation(network, features, labels, settings)

    def loss_of_step() -> Tensor:
        rows = rest[torch.randint(len(rest), (settings.batch_size,), generator=generator)]
        given = evaluate.read(rows, *draw_times(settings.batch_size, LAST_TIME, generator))
        return loss_of(network, given, labels[rows], settings)

    optimiser = torch.optim.Adam(network.parameters(), settings.learning_rate)
    fitted = fit(
        network,
        optimiser,
        settings.steps,
        loss_of_step,
        lambda: evaluate.score(held_out[:CHECKED_IMAGES]),
        on_step,
        interruption,
        parts=len(network.branch_taps),
    )
    interrupted = fitted.interrupted
    shown = held_out[:SHOWN_IMAGES]
    readings: Mapping[str, Tensor] = {}
    try:
        figures = evaluate.figures(held_out)
        readings = evaluate.readings(order[: max(min(count, MOST_READ), FEWEST_READ)])
        estimates = next(iter(readings.values()))[: len(shown)]
    except interruption:
        interrupted = True
        shown = held_out[:0]
        figures, estimates = {}, labels.new_zeros(0, len(CHECKED_TIMES), *labels.shape[-2:]).cpu()
    network.cpu()
    return TrainingResult(
        fitted.losses,
        fitted.best_step,
        figures,
        held_out.tolist(),
        shown.tolist(),
        estimates,
        readings,
        interrupted,
    )


def loss_of(
    network: DepthNetwork,
    read: tuple[Mapping[str, Tensor], Tensor],
    label: Tensor,
    settings: TrainingSettings,
) -> Tensor:
    """The sum over the branches of the L1 distance to the label."""
    features, time = read
    loss = torch.zeros((), device=label.device)
    for depth in network.branches(features, time, label.shape[-2:], tuple(network.branch_taps)):
        plain = (depth - label).abs().mean()
        if settings.aligned:
            plain = (fit_to_label(depth, label) - label).abs().mean() + ANCHOR * plain
        loss = loss + plain
    return loss


@dataclass(frozen=True)
class Evaluation:
    """Depth of the images. Each has its own noise, the same in every measurement."""

    network: DepthNetwork
    features: Features
    labels: Tensor
    settings: TrainingSettings

    def read(self, rows: Tensor, time: Tensor, seeds: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        """Features of images and the time, as tensors that autograd takes."""
        return read(self.features, rows, time, seeds), time.to(self.labels.device)

    @torch.no_grad()
    def depth(self, rows: Tensor, time: int) -> dict[str, Tensor]:
        """Branch -> (len(rows), 1, h, w), at one time."""
        self.network.eval()
        branches = tuple(self.network.branch_taps)
        parts = []
        for part in rows.split(self.settings.batch_size):
            read = self.read(part, torch.full((len(part),), float(time)), self.settings.seed + 1 + part)
            parts.append(self.network.branches(*read, self.labels.shape[-2:], branches))
        return {
            branch: torch.cat(maps) for branch, maps in zip(branches, zip(*parts, strict=True), strict=True)
        }

    def figures(self, rows: Tensor) -> Figures:
        """Metrics of every branch at each of CHECKED_TIMES."""
        found: Figures = {branch: {} for branch in self.network.branch_taps}
        for time in CHECKED_TIMES:
            for branch, depth in self.depth(rows, time).items():
                found[branch][time] = measure(
                    depth, self.labels[rows], self.settings.depth_range, self.settings.aligned
                )
        return found

    def readings(self, rows: Tensor) -> dict[str, Tensor]:
        """Depth of every branch at CHECKED_TIMES, on the CPU: branch -> (len(rows), times, h, w)."""
        at_times = [self.depth(rows, time) for time in CHECKED_TIMES]
        return {
            branch: torch.cat([depth[branch] for depth in at_times], dim=1).cpu()
            for branch in self.network.branch_taps
        }

    def score(self, rows: Tensor) -> float:
        """The error that selects the best state: mean AbsRel of the first branch, the strong one."""
        first = next(iter(self.figures(rows).values()))
        return sum(metrics.abs_rel for metrics in first.values()) / len(CHECKED_TIMES)
