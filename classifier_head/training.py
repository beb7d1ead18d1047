"""Training a classifier head on the features of a frozen diffusion model.

    loss       cross-entropy, at t uniform over the whole schedule: the classifier must know noise
    held out   a part of the images, which selects the best state and measures the accuracy; of each class, an
               image remains to learn from

All random numbers come from the seed. The caller passes in the function that computes features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..depth_head.fitting import Features, Interruption, draw_times, fit, read
from .network import ClassifierNetwork

TIMES = 1000
# The times at which held-out images are measured.
CHECKED_TIMES = (50, 200, 500, 800)
CHECKED_IMAGES = 64


@dataclass(frozen=True)
class ClassifierTrainingSettings:
    """held_out: share of the images, at least one (see split)."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    held_out: float = 0.1


@dataclass(frozen=True)
class ClassifierResult:
    """losses: of every step. best_step: after how many steps the kept state was. held_out: images.

    accuracy: share of held-out images whose class is the most likely, by time; empty where the measurement
    was interrupted. interrupted: in training or in measurement.
    """

    losses: list[float]
    best_step: int
    accuracy: dict[int, float]
    held_out: int
    interrupted: bool


@torch.inference_mode(False)
@torch.enable_grad()
def train_classifier(
    network: ClassifierNetwork,
    features: Features,
    labels: Tensor,
    settings: ClassifierTrainingSettings,
    device: torch.device,
    on_step: Callable[[int, list[float]], None],
    interruption: Interruption = (),
) -> ClassifierResult:
    """Train a network in place. Afterwards it is on the CPU, in evaluation mode and in its best state.

    labels (N,): class numbers; some class has two images. on_step and interruption: as in
    depth_head/training.py.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(labels), generator=generator)
    held_out, rest = split(labels, order, max(1, round(settings.held_out * len(labels))))
    labels = labels.clone().to(device)
    network.to(device)

    def loss_of_step() -> Tensor:
        rows = rest[torch.randint(len(rest), (settings.batch_size,), generator=generator)]
        logits = predict(network, features, rows, *draw_times(len(rows), TIMES, generator), device)
        return F.cross_entropy(logits, labels[rows])

    fitted = fit(
        network,
        torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=0.01),
        settings.steps,
        loss_of_step,
        lambda: measure(network, features, labels, held_out[:CHECKED_IMAGES], settings, device)[1],
        on_step,
        interruption,
    )
    interrupted = fitted.interrupted
    accuracy: dict[int, float] = {}
    try:
        accuracy = measure(network, features, labels, held_out, settings, device)[0]
    except interruption:
        interrupted = True
    network.cpu()
    return ClassifierResult(fitted.losses, fitted.best_step, accuracy, len(held_out), interrupted)


def split(labels: Tensor, order: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The images to hold out and the rest, both in this order: `count` of them, or fewer with small classes.

    The last image of a class is never held out: the head could not learn the class.
    """
    left = labels.bincount().tolist()
    chosen: list[int] = []
    for place, label in enumerate(labels[order].tolist()):
        if left[label] > 1 and len(chosen) < count:
            left[label] -= 1
            chosen.append(place)
    held_out = torch.zeros(len(order), dtype=torch.bool)
    held_out[chosen] = True
    return order[held_out], order[~held_out]


def predict(
    network: ClassifierNetwork,
    features: Features,
    rows: Tensor,
    time: Tensor,
    seeds: Tensor,
    device: torch.device,
) -> Tensor:
    """Logits of images under noise from the seeds."""
    return network(read(features, rows, time, seeds), time.to(device))


@torch.no_grad()
def measure(
    network: ClassifierNetwork,
    features: Features,
    labels: Tensor,
    rows: Tensor,
    settings: ClassifierTrainingSettings,
    device: torch.device,
) -> tuple[dict[int, float], float]:
    """Accuracy by time, and the mean cross-entropy over the times. Each image has its own noise."""
    network.eval()
    accuracy, losses = {}, []
    for time in CHECKED_TIMES:
        parts = [
            predict(
                network,
                features,
                part,
                torch.full((len(part),), float(time)),
                settings.seed + 1 + part,
                device,
            )
            for part in rows.split(settings.batch_size)
        ]
        logits = torch.cat(parts)
        accuracy[time] = (logits.argmax(dim=1) == labels[rows]).float().mean().item()
        losses.append(F.cross_entropy(logits, labels[rows]).item())
    return accuracy, sum(losses) / len(losses)
