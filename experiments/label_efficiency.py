"""How many labels a depth head needs, and which blocks know depth (DAG, section 3.2 and figure 4a).

    python -m tools.run experiments.label_efficiency                         writes label_efficiency.md
    python -m tools.run experiments.label_efficiency --family transformer    label_efficiency_transformer.md

Heads are trained on 10, 50, 100 and 1,000 labelled renders of the demo world and judged on 200 others, at
four noise levels. The first baseline is the same MLP on the noisy latent, with pixel positions: features
carry position through the UNet's padding, so the comparison would be unfair without it. The second is the
mean depth map of the labels, which needs no picture. A second table has a head for each block of the UNet
alone; transformer_blocks.py has that of the transformer. The models were not trained on any of the scenes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from comfy.model_management import get_torch_device
from torch import Tensor, nn
from tqdm import tqdm

from ..demo import model as demo
from ..demo.scenes import FAR, NEAR
from ..depth_head.architectures.pixel_mlp import PixelMLP
from ..depth_head.fitting import Features
from ..depth_head.head import first_half_blocks, middle_blocks
from ..depth_head.metrics import DepthMetrics, DepthRange, measure
from ..depth_head.training import CHECKED_TIMES, Evaluation, TrainingSettings, train
from ..host.depth.head_training import features_of
from ..host.depth.heads import feature_channels
from ..host.depth.training_pairs import noise_of
from ..host.sampling.frozen_model import FrozenModel, with_frozen_model
from ..tools.setup_host import ROOT
from . import markdown
from .kept_files import checksum
from .labelled_latents import JUDGED_SEED, LabelledLatents, encode_scenes
from .seeds import HEADS_JUDGED, HEADS_LABELLED

COMMAND = "python -m tools.run experiments.label_efficiency"
COUNTS = (10, 50, 100, 1000)

Row = dict[int, DepthMetrics]
"""Metrics by timestep."""
Inputs = Callable[[LabelledLatents], Features]
"""The inputs of a network for scenes."""


def main() -> None:
    """Trains and judges all heads, and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=demo.FAMILIES, default=demo.UNET)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="labels of the heads")
    parser.add_argument("--block-count", type=int, default=100, help="labels of the heads for single blocks")
    parser.add_argument("--judged", type=int, default=200, help="scenes on which heads are judged")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--size", type=int, default=256, help="side of the renders in pixels")
    parser.add_argument("--out", type=Path, help="file for the tables, instead of the one in docs/results/")
    options = parser.parse_args()
    with torch.inference_mode():
        started = time.monotonic()
        rows, blocks = measure_all(options)
    minutes = (time.monotonic() - started) / 60
    suffix = "" if options.family == demo.UNET else f"_{options.family}"
    out = options.out or ROOT / "docs" / "results" / f"label_efficiency{suffix}.md"
    out.write_text(tables(options, rows, blocks, minutes), encoding="utf-8")
    print(out.read_text(encoding="utf-8"))


def measure_all(options: argparse.Namespace) -> tuple[dict[str, Row], dict[str, Row]]:
    """The rows of both tables; a transformer has none in the second."""
    model, clip, vae = demo.load_all(demo.WEIGHTS, options.family)
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    depth_range = DepthRange(NEAR, FAR)
    most = max(*options.counts, options.block_count)
    labelled = encode_scenes(vae, HEADS_LABELLED.start, most, options.size, depth_range)
    judged = encode_scenes(vae, HEADS_JUDGED.start, options.judged, options.size, depth_range)
    settings = TrainingSettings(options.steps, options.batch_size, options.learning_rate, 0, depth_range)
    channels = feature_channels(model.get_model_object("diffusion_model"))
    is_unet = options.family == demo.UNET
    outputs = [name for name in channels if name[0] == ("o" if is_unet else "b")]
    chosen, weak = (middle_blocks if is_unet else first_half_blocks)(len(outputs))
    strong = [outputs[i] for i in chosen]

    def work(frozen: FrozenModel) -> tuple[dict[str, Row], dict[str, Row]]:
        trial = Trial(frozen, labelled, judged, settings, token_norm=not is_unet)
        rows = {}
        for count in options.counts:
            for branch, row in trial.head(count, channels, strong, [outputs[weak]]).items():
                rows[f"{count:,} labels, {branch} branch"] = row
        most = max(options.counts)
        rows[f"noisy latent and position, {most:,} labels"] = trial.noisy_latent(most)
        rows[f"mean depth map of {most:,} labels"] = trial.mean_map(most)
        if not is_unet:
            return rows, {}
        each = {name: channels[name] for name in ("m0", *outputs)}
        return rows, trial.each_block(options.block_count, each)

    shape = (options.batch_size, *labelled.latents.shape[1:])
    return with_frozen_model(model, prompt, shape, work)


class EachBlock(nn.Module):
    """A pixel MLP for every block, each a branch that reads its block alone; see depth_head/architectures."""

    def __init__(self, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.branch_taps = {name: (name,) for name in channels}
        self.of = nn.ModuleDict(
            {name: PixelMLP({name: count}, [name], [name]) for name, count in channels.items()}
        )

    def branches(
        self, features: Mapping[str, Tensor], time: Tensor, size: Sequence[int], branches: Sequence[str]
    ) -> list[Tensor]:
        """The depth of the named branches, (B, 1, h, w) each."""
        return [self.of[name](features, time, size) for name in branches]


@dataclass(frozen=True)
class Trial:
    """Trains networks on the first of the labelled scenes and judges them on all judged scenes."""

    model: FrozenModel
    labelled: LabelledLatents
    judged: LabelledLatents
    settings: TrainingSettings
    token_norm: bool
    """Whether the channels of each token are normalised, as the node does for transformers."""

    def head(
        self, count: int, channels: dict[str, int], strong: Sequence[str], weak: Sequence[str]
    ) -> dict[str, Row]:
        """A pixel MLP on the model's features, by branch."""
        taps = {name: channels[name] for name in channels if name in {*strong, *weak}}
        return self.train_and_judge(
            f"{count} labels",
            count,
            self.features(taps),
            lambda: PixelMLP(taps, strong, weak, token_norm=self.token_norm),
        )

    def each_block(self, count: int, channels: dict[str, int]) -> dict[str, Row]:
        """A pixel MLP for every block alone, by block. They are trained together."""
        return self.train_and_judge("each block", count, self.features(channels), lambda: EachBlock(channels))

    def noisy_latent(self, count: int) -> Row:
        """The same MLP on the model's input, the noisy latent, and on pixel positions."""

        def inputs(scenes: LabelledLatents) -> Features:
            def features(rows: Tensor, at: Tensor, seeds: Tensor) -> dict[str, Tensor]:
                latents = scenes.latents[rows]
                x, sigma = self.model.noisy(latents, noise_of(latents, seeds), at)
                x = self.model.model.model_sampling.calculate_input(sigma, x)
                positions = torch.stack(
                    torch.meshgrid(*(torch.linspace(-1, 1, side) for side in x.shape[-2:]), indexing="ij")
                )
                return {"x": torch.cat([x, positions.to(x).expand(len(x), -1, -1, -1)], dim=1)}

            return features

        taps = {"x": self.labelled.latents.shape[1] + 2}
        return self.train_and_judge("noisy latent", count, inputs, lambda: PixelMLP(taps, ["x"], ["x"]))[
            "strong"
        ]

    def features(self, taps: Iterable[str]) -> Inputs:
        """The model's features of the named blocks."""
        return lambda scenes: features_of(self.model, scenes.latents, list(taps))

    def train_and_judge(
        self, title: str, count: int, inputs: Inputs, make: Callable[[], Any]
    ) -> dict[str, Row]:
        """Metrics by branch of a new network, a DepthNetwork or EachBlock, trained on `count` labels."""
        with torch.inference_mode(False):
            torch.manual_seed(self.settings.seed)
            network = make()
        labels = self.labelled.labels[:count].to(self.model.device)
        with tqdm(total=self.settings.steps, desc=title, unit="step") as bar:
            train(
                network,
                inputs(self.labelled),
                labels,
                self.settings,
                lambda done, _: bar.update(done - bar.n),
            )
        network.to(self.model.device)
        settings = replace(self.settings, seed=JUDGED_SEED)
        labels = self.judged.labels.to(self.model.device)
        return Evaluation(network, inputs(self.judged), labels, settings).figures(torch.arange(len(labels)))

    def mean_map(self, count: int) -> Row:
        """The mean of the labels as the estimate for every scene."""
        labels = self.judged.labels
        mean = self.labelled.labels[:count].mean(0, keepdim=True).expand_as(labels)
        return dict.fromkeys(CHECKED_TIMES, measure(mean, labels, self.settings.depth_range))


def tables(options: argparse.Namespace, rows: dict[str, Row], blocks: dict[str, Row], minutes: float) -> str:
    """Both tables in Markdown, or the first alone."""
    family = "" if options.family == demo.UNET else f" --family {options.family}"
    trial = " (a trial)" if options.out else ""
    lines = [
        f"# Label efficiency of depth heads on the demo {options.family}",
        "",
        f"`{COMMAND}{family}`{trial}, {options.steps} steps of {options.batch_size}, learning rate "
        f"{options.learning_rate:g}, renders of {options.size} px, {options.judged} judged scenes, "
        f"{minutes:.0f} minutes on {get_torch_device()}; SHA-256 of {options.family} begins "
        f"{checksum(demo.WEIGHTS / demo.FAMILIES[options.family].model)}.",
        "",
        "AbsRel / RMSE in metres / delta1, without alignment, mean over the scenes. A tenth of the labels, "
        "at least one, is held out and only selects the best state.",
        "",
        *metrics_table(rows),
    ]
    if blocks:
        lines += [
            "",
            f"## Each block alone, {options.block_count} labels",
            "",
            *metrics_table(blocks),
        ]
    return "\n".join(lines) + "\n"


def metrics_table(rows: dict[str, Row]) -> list[str]:
    """A table with a column for each timestep."""
    times = list(next(iter(rows.values())))
    cells = {
        name: [f"{row[t].abs_rel:.3f} / {row[t].rmse:.2f} / {row[t].delta1:.2f}" for t in times]
        for name, row in rows.items()
    }
    return markdown.table([f"t = {t}" for t in times], cells)
