"""Training a classifier head on the features of a frozen diffusion model.

    loss       cross-entropy, at t uniform over the whole schedule: the classifier must know noise
    held out   a part of the images, which selects the best state and measures the accuracy

All random numbers come from the seed. The caller passes in the function that computes features.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..depth_head.training import Features, Interruption, decay
from .network import ClassifierNetwork

TIMES = 1000
LEVELS = (50, 200, 500, 800)
CHECKS = 10
CHECKED_IMAGES = 64


@dataclass(frozen=True)
class ClassifierTraining:
    """The settings of the node. held_out: share of the images, at least one."""

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
    settings: ClassifierTraining,
    device: torch.device,
    on_step: Callable[[int, list[float]], None],
    interruption: Interruption = (),
) -> ClassifierResult:
    """Train a network in place. Afterwards it is on the CPU, in evaluation mode and in its best state.

    labels (N,): class numbers; N is 2 or more. on_step and interruption: as in depth_head/training.py.
    """
    labels = labels.clone().to(device)
    network.to(device)
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(labels), generator=generator)
    count = max(1, round(settings.held_out * len(labels)))
    held_out, rest = order[:count], order[count:]
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=0.01)
    check_every = max(1, settings.steps // CHECKS)

    losses: list[float] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    interrupted = False
    network.train().requires_grad_(True)
    try:
        while len(losses) < settings.steps:
            on_step(len(losses), losses)
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * decay(len(losses) / settings.steps)
            rows = rest[torch.randint(len(rest), (settings.batch_size,), generator=generator)]
            parts = torch.randperm(len(rows), generator=generator) + torch.rand(
                len(rows), generator=generator
            )
            seeds = torch.randint(2**62, (len(rows),), generator=generator)
            logits = predict(network, features, rows, parts / len(rows) * TIMES, seeds, device)
            loss = F.cross_entropy(logits, labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            if len(losses) % check_every == 0 or len(losses) == settings.steps:
                score = measure(network, features, labels, held_out[:CHECKED_IMAGES], settings, device)[1]
                if best is None or score < best[0]:
                    best = score, len(losses), copy.deepcopy(network.state_dict())
                network.train()
    except interruption:
        if not losses:
            raise
        interrupted = True
    best_step = len(losses)
    if best is not None:
        _, best_step, state = best
        network.load_state_dict(state)
    network.requires_grad_(False).eval()
    accuracy: dict[int, float] = {}
    try:
        accuracy = measure(network, features, labels, held_out, settings, device)[0]
    except interruption:
        interrupted = True
    network.cpu()
    return ClassifierResult(losses, best_step, accuracy, count, interrupted)


def predict(
    network: ClassifierNetwork,
    features: Features,
    rows: Tensor,
    time: Tensor,
    seeds: Tensor,
    device: torch.device,
) -> Tensor:
    """Logits of images under noise from the seeds. Raises ValueError if the model's numbers overflow."""
    with torch.inference_mode():
        found = features(rows, time, seeds)
    found = {name: feature.clone() for name, feature in found.items()}
    if not all(feature.isfinite().all() for feature in found.values()):
        raise ValueError(
            "The model's features are not finite at this precision: start ComfyUI with --bf16-unet or "
            "--fp32-unet, or choose another block."
        )
    return network(found, time.to(device))


@torch.no_grad()
def measure(
    network: ClassifierNetwork,
    features: Features,
    labels: Tensor,
    rows: Tensor,
    settings: ClassifierTraining,
    device: torch.device,
) -> tuple[dict[int, float], float]:
    """Accuracy by time, and the mean cross-entropy over the times. Each image has its own noise."""
    network.eval()
    accuracy, losses = {}, []
    for time in LEVELS:
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
