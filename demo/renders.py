"""Renders of the demo world on disk: shards of uint8 pictures that the training stages share.

Shard `start` holds the scenes of seeds start ... start + SHARD - 1 as a (SHARD, H, W, 3) array.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .ray_casting import render
from .scenes import sample_scene

SHARD = 250
HELD_OUT = 1_000_000
"""Seeds from here on are never trained on."""


def render_shards(folder: Path, scenes: int, workers: int) -> None:
    """Renders seeds 0 ... scenes - 1; finished shards are kept when called again."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [start for start in range(0, scenes, SHARD) if not shard_path(folder, start).exists()]
    # Forked: a new interpreter would not know the package `inner_guidance`.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        jobs = pool.map(_render_shard, [folder] * len(missing), missing)
        for _ in tqdm(jobs, total=len(missing), desc="rendering", unit="shard"):
            pass


def shard_path(folder: Path, start: int) -> Path:
    """Where the shard of seeds start ... start + SHARD - 1 lies."""
    return folder / f"{start:07d}.npy"


def shards(folder: Path) -> list[Path]:
    """Paths of the finished shards in the order of their seeds."""
    return sorted(folder.glob("[0-9]*.npy"))


def to_uint8(rgb: torch.Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    return (rgb.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def _render_shard(folder: Path, start: int) -> None:
    torch.set_num_threads(1)
    pictures = np.stack([to_uint8(render(sample_scene(seed)).rgb) for seed in range(start, start + SHARD)])
    target = shard_path(folder, start)
    unfinished = target.with_suffix(f".{os.getpid()}")
    with open(unfinished, "wb") as file:
        np.save(file, pictures)
    unfinished.rename(target)
