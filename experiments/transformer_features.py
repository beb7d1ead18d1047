"""Features of the demo transformer on rendered scenes, kept in a folder, for transformer_heads.py.

A draw is one evaluation of one scene at one time with one noise. Draws are kept in files of SHARD, and
existing files are not made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from ..depth_head.fitting import stratified
from ..depth_head.training import CHECKED_TIMES, LAST_TIME
from ..host.depth.training_pairs import noise_of
from ..host.sampling.frozen_model import FrozenModel
from .kept_files import save

SHARD = 50
BATCH = 10


@dataclass(frozen=True)
class Draws:
    """Features (D, C, h, w) by block, float16; times (D,), 1000 sigma; scenes (D,), by their place."""

    features: dict[str, Tensor]
    times: Tensor
    scenes: Tensor


def uniform_times(count: int) -> Tensor:
    """`count` times below LAST_TIME, stratified."""
    return stratified(count, torch.Generator().manual_seed(count)) * LAST_TIME


def training_draws(
    folder: Path, model: FrozenModel, latents: Tensor, blocks: Sequence[str], count: int
) -> Draws:
    """`count` evaluations that go round the scenes, at uniform times."""
    which = torch.arange(count) % len(latents)
    kept = folder / f"uniform-{len(latents)}-{count}"
    return _kept(kept, model, latents, blocks, which, uniform_times(count), first_seed=0)


def judged_draws(
    folder: Path, model: FrozenModel, latents: Tensor, blocks: Sequence[str], first_seed: int
) -> dict[int, Draws]:
    """One evaluation of each scene at each of CHECKED_TIMES, by time."""
    which = torch.arange(len(latents))
    draws = {}
    for time in CHECKED_TIMES:
        times = torch.full((len(which),), float(time))
        kept = folder / f"judged-{len(which)}-{time}"
        draws[time] = _kept(kept, model, latents, blocks, which, times, first_seed)
    return draws


def _kept(
    folder: Path,
    model: FrozenModel,
    latents: Tensor,
    blocks: Sequence[str],
    which: Tensor,
    times: Tensor,
    first_seed: int,
) -> Draws:
    shards: list[dict[str, Tensor]] = []
    for first in tqdm(range(0, len(which), SHARD), desc=folder.name, unit="file"):
        path = folder / f"{first:05}.safetensors"
        if not path.exists():
            rows = torch.arange(first, min(first + SHARD, len(which)))
            parts = [
                model.features(
                    blocks,
                    latents[which[batch]],
                    noise_of(latents[which[batch]], first_seed + batch),
                    times[batch],
                )
                for batch in rows.split(BATCH)
            ]
            save(path, **{name: torch.cat([part[name] for part in parts]).half().cpu() for name in blocks})
        shards.append(load_file(path))
    return Draws({name: torch.cat([shard[name] for shard in shards]) for name in blocks}, times, which)
