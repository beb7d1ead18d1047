"""Labelled renders on disk, one file per shard, and the training of recogniser and depth judge on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format
from tqdm import tqdm

from .progress import Training
from .renders import SHARD, in_processes, shards
from .scenes import Scene, sample_scene

LEARNING_RATE = 2e-3
AVERAGE_DECAY = 0.998
CHECKPOINT_MINUTES = 1.0

Examples = dict[str, Tensor]
"""Pictures (N, 3, H, W) in uint8 under "pictures", labels (N, ...) under their names."""
Label = Callable[[Tensor, list[Scene]], Examples]
"""Renders (N, H, W, 3) in uint8 and their scenes to examples."""
Loss = Callable[[nn.Module, Examples, np.random.Generator], Tensor]
"""The loss of a judge for a batch, which it may augment."""


@dataclass(frozen=True)
class JudgeTraining:
    """How a judge is trained: files, number of scenes, minutes with those of earlier calls.

    workers: processes that label. seed: of the weights and of the batches.
    """

    renders: Path
    examples: Path
    scenes: int
    checkpoint: Path
    minutes: float
    device: str
    workers: int
    seed: int


def label_shards(renders: Path, folder: Path, scenes: int, workers: int, label: Label) -> None:
    """Writes examples of the first `scenes` renders, in whole shards. Finished files are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = shards(renders, "renders")[: -(-scenes // SHARD)]
    missing = [path for path in wanted if not (folder / f"{path.stem}.npz").exists()]
    in_processes(partial(_label_shard, folder, label), missing, workers, "labelling")


def _label_shard(folder: Path, label: Label, shard: Path) -> None:
    torch.set_num_threads(1)
    pictures = torch.from_numpy(np.load(shard))
    examples = label(pictures, [sample_scene(int(shard.stem) + i) for i in range(len(pictures))])
    unfinished = folder / f"{shard.stem}.unfinished"
    with open(unfinished, "wb") as file:
        arrays: dict[str, Any] = {name: values.numpy() for name, values in examples.items()}
        np.savez(file, **arrays)
    unfinished.rename(folder / f"{shard.stem}.npz")


def load_examples(folder: Path) -> Examples:
    """The examples that `label_shards` wrote, all shards concatenated."""
    arrays = [np.load(path) for path in sorted(folder.glob("*.npz"))]
    return {name: torch.from_numpy(np.concatenate([a[name] for a in arrays])) for name in arrays[0]}


def train_on_examples(
    stage: str, network: type[nn.Module], loss_of: Loss, label: Label, batch_size: int, options: JudgeTraining
) -> dict[str, Tensor]:
    """Labels the renders, trains a judge of a class, earlier calls included; returns the averaged weights."""
    label_shards(options.renders, options.examples, options.scenes, options.workers, label)
    examples, device = load_examples(options.examples), options.device
    torch.manual_seed(options.seed)
    model = convert_conv2d_weight_memory_format(network().to(device), torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.02)
    training = Training(stage, model, [optimiser], options.checkpoint, options.minutes)
    budget = training.budget
    rng = np.random.default_rng((options.seed, training.step))
    bar = tqdm(desc=stage, unit="step", initial=training.step)
    while budget.fraction < 1:
        rows = torch.from_numpy(rng.integers(len(examples["pictures"]), size=batch_size))
        loss = loss_of(model, {name: values[rows].to(device) for name, values in examples.items()}, rng)
        training.learn(loss, budget.rate(LEARNING_RATE, training.step), AVERAGE_DECAY)
        bar.update()
        if training.step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", left=f"{options.minutes - budget.elapsed:.1f} min")
        training.save_every(CHECKPOINT_MINUTES)
    return training.average
