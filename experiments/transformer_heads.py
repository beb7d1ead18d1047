"""The depth heads of transformer_blocks.py: their training on kept features, and their figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..demo import model as demo
from ..demo.scenes import FAR, NEAR
from ..depth_head.architectures.pixel_mlp import PixelMLP
from ..depth_head.fitting import fit
from ..depth_head.metrics import DepthRange, measure
from ..host.depth.heads import feature_channels
from ..host.sampling.frozen_model import FrozenModel, with_frozen_model
from .kept_files import checksum
from .labelled_latents import JUDGED_SEED, encode_scenes
from .seeds import HEADS_JUDGED, HEADS_LABELLED
from .transformer_features import Draws, judged_draws, training_draws

FAMILY = "transformer"
LABELS = 100
DRAWS = 800
BATCH = 8
LEARNING_RATE = 2e-3
HELD_OUT = 0.1
SCORED = 32
"""Held-out draws that select the best state."""
RANGE = DepthRange(NEAR, FAR)
SIZE = 256


class Head(NamedTuple):
    """A pixel MLP on blocks. seed: of initial weights, held-out scenes and order."""

    blocks: tuple[str, ...]
    token_norm: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """The demo transformer's features of the scenes that heads learn from and are judged on.

    labels (LABELS, 1, h, w) and judged_labels (N, 1, h, w): relative depth.
    """

    steps: int
    folder: Path
    channels: Mapping[str, int]
    labels: Tensor
    judged_labels: Tensor
    draws: Draws
    judged_draws: Mapping[int, Draws]

    @classmethod
    def load(cls, options: argparse.Namespace) -> Trial:
        """With the features that are missing in the work folder."""
        model, clip, vae = demo.load_all(demo.WEIGHTS, FAMILY)
        folder = features_folder(options.work)
        channels = feature_channels(model.get_model_object("diffusion_model"))
        with torch.inference_mode():
            prompt = clip.encode_from_tokens_scheduled(clip.tokenize(""))
            labelled = encode_scenes(vae, HEADS_LABELLED.start, LABELS, SIZE, RANGE)
            judged = encode_scenes(vae, HEADS_JUDGED.start, options.judged, SIZE, RANGE)

            def work(frozen: FrozenModel) -> tuple[Draws, dict[int, Draws]]:
                blocks = list(channels)
                return (
                    training_draws(folder, frozen, labelled.latents, blocks, DRAWS),
                    judged_draws(folder, frozen, judged.latents, blocks, JUDGED_SEED),
                )

            found = with_frozen_model(model, prompt, (BATCH, *labelled.latents.shape[1:]), work)
        return cls(options.steps, folder, channels, labelled.labels, judged.labels, *found)

    def figures(self, head: Head) -> dict[str, float]:
        """AbsRel by time of the judged scenes, with a head that is trained unless its figures are kept."""
        path = figures_file(self.folder, self.steps, head)
        if not path.exists():
            found = self.judge(head, self.train(head))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found), encoding="utf-8")
        return kept_figures(path)

    @torch.no_grad()
    def judge(self, head: Head, network: PixelMLP) -> dict[str, float]:
        """AbsRel by time."""
        found = {}
        for time, draws in self.judged_draws.items():
            depth = torch.cat(
                [
                    network(read(head, draws, rows), draws.times[rows], self.judged_labels.shape[-2:])
                    for rows in torch.arange(len(self.judged_labels)).split(BATCH)
                ]
            )
            found[str(time)] = measure(depth, self.judged_labels, RANGE).abs_rel
        return found

    def train(self, head: Head) -> PixelMLP:
        """A pixel MLP that has learned from the labelled scenes; a tenth of them selects."""
        torch.manual_seed(head.seed)
        taps = {name: self.channels[name] for name in head.blocks}
        network = PixelMLP(taps, head.blocks, head.blocks, token_norm=head.token_norm)
        generator = torch.Generator().manual_seed(head.seed)
        order = torch.randperm(LABELS, generator=generator)
        held_out = torch.isin(self.draws.scenes, order[: round(HELD_OUT * LABELS)])
        learned, selecting = (~held_out).nonzero()[:, 0], held_out.nonzero()[:SCORED, 0]

        def depth(rows: Tensor) -> Tensor:
            features = read(head, self.draws, rows)
            return network(features, self.draws.times[rows], self.labels.shape[-2:])

        def loss_of_step() -> Tensor:
            rows = learned[torch.randint(len(learned), (BATCH,), generator=generator)]
            return (depth(rows) - self.labels[self.draws.scenes[rows]]).abs().mean()

        @torch.no_grad()
        def score() -> float:
            network.eval()
            return measure(depth(selecting), self.labels[self.draws.scenes[selecting]], RANGE).abs_rel

        optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE)
        fit(network, optimiser, self.steps, loss_of_step, score, lambda done, losses: None, ())
        return network


def read(head: Head, draws: Draws, rows: Tensor) -> dict[str, Tensor]:
    """The features (B, C, h, w) of some draws that a head reads."""
    return {name: draws.features[name][rows].float() for name in head.blocks}


def features_folder(work: Path) -> Path:
    """Where the features of today's transformer, and the figures of heads on them, are kept."""
    return work / checksum(demo.WEIGHTS / demo.TRANSFORMER_FILE)


def figures_file(folder: Path, steps: int, head: Head) -> Path:
    """Where the figures of a head are kept."""
    form = "token-norm" if head.token_norm else "stream"
    return folder / f"{steps}-steps" / f"{'-'.join(head.blocks)}-{form}-{head.seed}.json"


def kept_figures(path: Path) -> dict[str, float]:
    """AbsRel by time."""
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return found
