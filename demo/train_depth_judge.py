"""Trains the depth judge on renders, shrunk and labelled once."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .depth_judge import GRID, DepthJudge, Judgement, depth_label, shrink
from .progress import Budget, read_checkpoint, update_average, write_checkpoint
from .renders import SHARD, shards
from .world import FIRST_SOLID, LEFT_WALL, RIGHT_WALL, render, sample_scene

BATCH = 16
LEARNING_RATE = 2e-3
NOISE = 0.03
"""Largest standard deviation of the noise on training pictures: the autoencoder's faults must not matter."""
SURFACE_WEIGHT = 0.05
MIXED = 255
"""Label of a cell that shows more than one surface: nothing is learnt there."""
CHECKPOINT_MINUTES = 1.0
LABELS = ("depth", "surfaces")


def label_shards(renders: Path, examples: Path, scenes: int, workers: int) -> None:
    """Writes pictures of SIZE pixels and labels for the first shards of renders; finished ones are kept."""
    examples.mkdir(parents=True, exist_ok=True)
    wanted = shards(renders)[: -(-scenes // SHARD)]
    missing = [path for path in wanted if not (examples / f"{path.stem}.npz").exists()]
    with ProcessPoolExecutor(workers) as pool:
        jobs = pool.map(_label_shard, missing, [examples] * len(missing))
        for _ in tqdm(jobs, total=len(missing), desc="labelling", unit="shard"):
            pass


def _label_shard(path: Path, examples: Path) -> None:
    torch.set_num_threads(1)
    pictures = shrink(torch.from_numpy(np.load(path)).float()).round().to(torch.uint8)
    renders = [render(sample_scene(int(path.stem) + i), size=2 * GRID) for i in range(len(pictures))]
    unfinished = examples / f"{path.stem}.unfinished"
    with open(unfinished, "wb") as file:
        np.savez(
            file,
            pictures=pictures.numpy(),
            depth=torch.stack([depth_label(seen.depth) for seen in renders]).half().numpy(),
            surfaces=torch.stack([surface_label(seen.surface) for seen in renders]).numpy(),
        )
    unfinished.rename(examples / f"{path.stem}.npz")


def surface_label(surface: Tensor) -> Tensor:
    """(2 GRID, 2 GRID) surface numbers to (GRID, GRID): the surface that fills a cell, or MIXED."""
    cells = surface.clamp(max=FIRST_SOLID).unflatten(0, (GRID, 2)).unflatten(2, (GRID, 2))
    low, high = cells.amin((1, 3)), cells.amax((1, 3))
    return torch.where(low == high, low, MIXED).to(torch.uint8)


def load_examples(examples: Path) -> dict[str, Tensor]:
    """Pictures (N, 3, SIZE, SIZE) in uint8 under "pictures", and the LABELS."""
    arrays = [np.load(path) for path in sorted(examples.glob("*.npz"))]
    return {
        name: torch.from_numpy(np.concatenate([a[name] for a in arrays])) for name in ("pictures", *LABELS)
    }


def train_depth_judge(
    renders: Path, examples: Path, scenes: int, checkpoint: Path, minutes: float, device: str, workers: int
) -> dict[str, Tensor]:
    """Trains for `minutes` in all, earlier calls included; returns the averaged weights."""
    label_shards(renders, examples, scenes, workers)
    data = load_examples(examples)

    model = DepthJudge().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.02)
    step, spent = 0, 0.0
    average = {name: weight.clone() for name, weight in model.state_dict().items()}
    if state := read_checkpoint(checkpoint):
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average = {name: weight.to(device) for name, weight in state["average"].items()}
        step, spent = state["step"], state["spent"]

    rng = np.random.default_rng(step)
    budget = Budget(minutes, spent)
    saved = spent
    bar = tqdm(desc="depth judge", unit="step", initial=step)
    while budget.fraction < 1:
        for group in optimiser.param_groups:
            group["lr"] = budget.rate(LEARNING_RATE, step)
        rows = torch.from_numpy(rng.integers(len(data["pictures"]), size=BATCH))
        batch = {name: values[rows].to(device) for name, values in data.items()}
        pictures, labels = _augment(
            batch["pictures"].float() / 255, {name: batch[name] for name in LABELS}, rng
        )
        with torch.autocast(device, torch.bfloat16):
            seen = model(pictures)
        loss = judgement_loss(seen, labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        update_average(average, model, step, 0.998)
        step += 1
        bar.update()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", left=f"{minutes - budget.elapsed:.1f} min")
        if budget.elapsed > saved + CHECKPOINT_MINUTES or budget.fraction == 1:
            saved = budget.elapsed
            write_checkpoint(
                checkpoint,
                model=model.state_dict(),
                average=average,
                optimiser=optimiser.state_dict(),
                step=step,
                spent=saved,
            )
    return average


def judgement_loss(seen: Judgement, labels: dict[str, Tensor]) -> Tensor:
    """Mean absolute error of the depth + SURFACE_WEIGHT * cross-entropy of the surfaces."""
    depth = (seen.depth - labels["depth"].float()).abs().mean()
    surfaces = F.cross_entropy(seen.surfaces.float(), labels["surfaces"].long(), ignore_index=MIXED)
    return depth + SURFACE_WEIGHT * surfaces


def _augment(
    pictures: Tensor, labels: dict[str, Tensor], rng: np.random.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mirrors half of the pictures (N, 3, H, W) and their labels; blurs all, and adds noise."""
    mirrored = torch.from_numpy(rng.random(len(pictures)) < 0.5).to(pictures.device)
    mirrored = mirrored[:, None, None]
    pictures = torch.where(mirrored[..., None], pictures.flip(-1), pictures)
    depth = torch.where(mirrored[..., None], labels["depth"].flip(-1), labels["depth"])
    surfaces = torch.where(mirrored, swap_sides(labels["surfaces"].flip(-1)), labels["surfaces"])

    blur, strength = torch.rand(2, len(pictures), 1, 1, 1, device=pictures.device)
    around = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    pictures = pictures.lerp(around, blur) + NOISE * strength * torch.randn_like(pictures)
    return pictures.contiguous(memory_format=torch.channels_last), {"depth": depth, "surfaces": surfaces}


def swap_sides(surfaces: Tensor) -> Tensor:
    """Surface numbers with left and right wall exchanged."""
    left, right = surfaces == LEFT_WALL, surfaces == RIGHT_WALL
    return surfaces.masked_fill(left, RIGHT_WALL).masked_fill(right, LEFT_WALL)
