"""Renders of the demo world on disk, in shards that the training stages share.

Shard `start` holds the scenes of seeds start ... start + SHARD - 1 as a (SHARD, H, W, 3) array in uint8.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

from .ray_casting import render
from .scenes import sample_scene

SHARD = 250
"""Scenes in a shard."""
HELD_OUT = 1_000_000
"""No network is trained on scenes from this seed on."""

T = TypeVar("T")


def render_shards(folder: Path, scenes: int, workers: int) -> None:
    """Renders seeds 0 ... scenes - 1. Finished shards are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [start for start in range(0, scenes, SHARD) if not shard_path(folder, start).exists()]
    in_processes(partial(_render_shard, folder), missing, workers, "rendering")


def in_processes(work: Callable[[T], None], shards: Sequence[T], workers: int, title: str) -> None:
    """Calls `work` with every shard, in `workers` processes, behind a progress bar."""
    # Forked, because a new interpreter would not know the package `inner_guidance`.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        for _ in tqdm(pool.map(work, shards), total=len(shards), desc=title, unit="shard"):
            pass


def shard_path(folder: Path, start: int) -> Path:
    """The file of the shard of seeds start ... start + SHARD - 1."""
    return folder / f"{start:07d}.npy"


def shards(folder: Path, stage: str) -> list[Path]:
    """The files of the finished shards in the order of their seeds.

    Raises SystemExit if there are none. It names the stage of demo.train that writes them.
    """
    paths = sorted(folder.glob("[0-9]*.npy"))
    if not paths:
        sys.exit(f"There are no shards in {folder}: run `python -m tools.run demo.train {stage}` first.")
    return paths


def to_uint8(rgb: torch.Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    return (rgb.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def _render_shard(folder: Path, start: int) -> None:
    torch.set_num_threads(1)
    pictures = np.stack([to_uint8(render(sample_scene(seed)).rgb) for seed in range(start, start + SHARD)])
    write_shard(shard_path(folder, start), pictures)


def write_shard(path: Path, array: np.ndarray) -> None:
    """Writes an array. An interruption leaves no file under that name."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    with open(unfinished, "wb") as file:
        np.save(file, array)
    unfinished.rename(path)
