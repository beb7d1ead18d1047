"""How many labels a depth head needs, and which blocks know depth (DAG, section 3.2 and figure 4a).

    python -m tools.run experiments.label_efficiency [--steps N]      writes label_efficiency.md

On the demo world: heads from 10, 50, 100 and 1,000 labelled renders, judged on 200 others at four noise
levels. Beside them the same MLP on the noisy latent itself with pixel positions (features carry position
through the UNet's padding, so without it the comparison would be unfair), and the mean depth map of the
labels, which is what can be known without looking. Then a head for each block alone. No scene was seen by the
UNet in training.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..tools.setup_host import ROOT

if TYPE_CHECKING:
    from comfy.sd import VAE

    from inner_guidance.depth_head.metrics import DepthMetrics, DepthRange
    from inner_guidance.depth_head.training import Features, TrainingSettings
    from inner_guidance.host.sampling.frozen_unet import FrozenUNet

TABLE = ROOT / "docs" / "results" / "label_efficiency.md"
COUNTS = (10, 50, 100, 1000)
FIRST_LABELLED, FIRST_JUDGED = 1_040_000, 1_060_000
COMMAND = "python -m tools.run experiments.label_efficiency"

Row = dict[int, "DepthMetrics"]
Reading = Callable[["Scenes"], "Features"]


@dataclass(frozen=True)
class Scenes:
    """Latents (N, C, h, w) of renders, and their depth (N, 1, h, w), relative inverse depth."""

    latents: Tensor
    labels: Tensor


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--block-count", type=int, default=100, help="labels of the heads for single blocks")
    parser.add_argument("--judged", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--size", type=int, default=256, help="pixels of a render's side")
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    with torch.inference_mode():
        started = time.monotonic()
        rows, blocks = measure_all(options)
    minutes = (time.monotonic() - started) / 60
    options.out.write_text(table(options, rows, blocks, minutes))
    print(options.out.read_text())


def measure_all(options: argparse.Namespace) -> tuple[dict[str, Row], dict[str, Row]]:
    """The rows of both tables."""
    from inner_guidance.demo import model as demo
    from inner_guidance.demo.scenes import FAR, NEAR
    from inner_guidance.depth_head.metrics import DepthRange
    from inner_guidance.depth_head.training import TrainingSettings
    from inner_guidance.host.depth.heads import feature_channels
    from inner_guidance.host.sampling.frozen_unet import with_frozen_unet

    model, clip, vae = demo.load_all(demo.WEIGHTS)
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    depth_range = DepthRange(NEAR, FAR)
    labelled = encoded(
        vae, FIRST_LABELLED, max(*options.counts, options.block_count), options.size, depth_range
    )
    judged = encoded(vae, FIRST_JUDGED, options.judged, options.size, depth_range)
    settings = TrainingSettings(options.steps, options.batch_size, options.learning_rate, 0, depth_range)
    channels = feature_channels(model.get_model_object("diffusion_model"))
    outputs = [name for name in channels if name[0] == "o"]

    def work(unet: FrozenUNet) -> tuple[dict[str, Row], dict[str, Row]]:
        bench = Bench(unet, labelled, judged, settings)
        rows = {}
        for count in options.counts:
            for branch, row in bench.head(count, channels, *default_blocks(len(outputs))).items():
                rows[f"{count:,} labels, {branch} branch"] = row
        most = max(options.counts)
        rows[f"noisy latent and position, {most:,} labels"] = bench.raw(most)
        rows[f"mean depth map of {most:,} labels"] = bench.mean_map(most)
        each = {name: channels[name] for name in ("m0", *outputs)}
        return rows, bench.each_block(options.block_count, each)

    shape = (options.batch_size, *labelled.latents.shape[1:])
    return with_frozen_unet(model, prompt, shape, work)


def default_blocks(count: int) -> tuple[list[str], list[str]]:
    """Names of what Train Depth Head reads by default: strong, weak."""
    from inner_guidance.depth_head.head import middle_blocks

    strong, weak = middle_blocks(count)
    return [f"o{i}" for i in strong], [f"o{weak}"]


def encoded(vae: VAE, first: int, count: int, size: int, depth_range: DepthRange) -> Scenes:
    """Scenes of consecutive seeds."""
    from inner_guidance.demo.ray_casting import render
    from inner_guidance.demo.scenes import sample_scene

    latents, labels = [], []
    for seed in tqdm(range(first, first + count), desc="rendering", unit="scene"):
        seen = render(sample_scene(seed), size)
        latents.append(vae.encode(seen.rgb.movedim(0, -1)[None]).cpu())
        labels.append(depth_range.relative(seen.depth)[None, None])
    whole = torch.cat(latents)
    return Scenes(whole, torch.nn.functional.interpolate(torch.cat(labels), whole.shape[-2:], mode="area"))


class EachBlock(nn.Module):
    """A branch for every block, as depth_head/architectures has them: each reads its block alone."""

    def __init__(self, channels: Mapping[str, int]) -> None:
        from inner_guidance.depth_head.architectures.pixel_mlp import PixelMLP

        super().__init__()
        self.branch_taps = {name: (name,) for name in channels}
        self.of = nn.ModuleDict(
            {name: PixelMLP({name: count}, [name], [name]) for name, count in channels.items()}
        )

    def branches(
        self, features: Mapping[str, Tensor], time: Tensor, size: Sequence[int], branches: Sequence[str]
    ) -> list[Tensor]:
        """Depth of several blocks."""
        return [self.of[name](features, time, size) for name in branches]


@dataclass(frozen=True)
class Bench:
    """Trains on the first of the labelled scenes, judges on all of the others."""

    unet: FrozenUNet
    labelled: Scenes
    judged: Scenes
    settings: TrainingSettings

    def head(
        self, count: int, channels: dict[str, int], strong: Sequence[str], weak: Sequence[str]
    ) -> dict[str, Row]:
        """Figures of the branches of a pixel MLP."""
        from inner_guidance.depth_head.architectures.pixel_mlp import PixelMLP

        taps = {name: channels[name] for name in channels if name in {*strong, *weak}}
        return self.trained(
            f"{count} labels", count, self.of_unet(taps), lambda: PixelMLP(taps, strong, weak)
        )

    def each_block(self, count: int, channels: dict[str, int]) -> dict[str, Row]:
        """Figures of a pixel MLP for every block alone, all in one training."""
        return self.trained("each block", count, self.of_unet(channels), lambda: EachBlock(channels))

    def raw(self, count: int) -> Row:
        """The same MLP on the noisy latent as the UNet is given it, and the pixel's place."""
        from inner_guidance.depth_head.architectures.pixel_mlp import PixelMLP
        from inner_guidance.host.depth.head_training import noise_of

        def reading(scenes: Scenes) -> Features:
            def features(rows: Tensor, at: Tensor, seeds: Tensor) -> dict[str, Tensor]:
                latents = scenes.latents[rows]
                x, sigma = self.unet.noisy(latents, noise_of(latents, seeds), at)
                x = self.unet.model.model_sampling.calculate_input(sigma, x)
                places = torch.stack(
                    torch.meshgrid(*(torch.linspace(-1, 1, side) for side in x.shape[-2:]), indexing="ij")
                )
                return {"x": torch.cat([x, places.to(x).expand(len(x), -1, -1, -1)], dim=1)}

            return features

        taps = {"x": self.labelled.latents.shape[1] + 2}
        return self.trained("noisy latent", count, reading, lambda: PixelMLP(taps, ["x"], ["x"]))["strong"]

    def of_unet(self, taps: Iterable[str]) -> Reading:
        """The UNet's features."""
        from inner_guidance.host.depth.head_training import features_of

        return lambda scenes: features_of(self.unet, scenes.latents, list(taps))

    def trained(self, name: str, count: int, reading: Reading, network: Callable[[], Any]) -> dict[str, Row]:
        """Train a network, a DepthNetwork or EachBlock, and judge its branches."""
        from inner_guidance.depth_head.training import Evaluation, train

        with torch.inference_mode(False):
            torch.manual_seed(self.settings.seed)
            made = network()
        labels = self.labelled.labels[:count].to(self.unet.device)
        with tqdm(total=self.settings.steps, desc=name, unit="step") as bar:
            train(
                made,
                reading(self.labelled),
                labels,
                self.settings,
                lambda done, _: bar.update(done - bar.n),
            )
        made.to(self.unet.device)
        settings = replace(self.settings, seed=10**6)
        labels = self.judged.labels.to(self.unet.device)
        return Evaluation(made, reading(self.judged), labels, settings).figures(torch.arange(len(labels)))

    def mean_map(self, count: int) -> Row:
        """The labels' mean for every scene."""
        from inner_guidance.depth_head.metrics import measure
        from inner_guidance.depth_head.training import LEVELS

        labels = self.judged.labels
        mean = self.labelled.labels[:count].mean(0, keepdim=True).expand_as(labels)
        return dict.fromkeys(LEVELS, measure(mean, labels, self.settings.depth_range))


def table(options: argparse.Namespace, rows: dict[str, Row], blocks: dict[str, Row], minutes: float) -> str:
    """Both tables in Markdown."""
    from comfy.model_management import get_torch_device

    arguments = "" if options.out == TABLE else " (a trial)"
    lines = [
        "# Label efficiency of depth heads on the demo world",
        "",
        f"`{COMMAND}`{arguments}, {options.steps} steps of {options.batch_size}, learning rate "
        f"{options.learning_rate:g}, renders of {options.size} px, {options.judged} judged scenes, "
        f"{minutes:.0f} minutes on {get_torch_device()}.",
        "",
        "Mean over the scenes of AbsRel / RMSE in metres / delta1, without alignment. A tenth of the "
        "labels, one at least, only chooses the best state.",
        "",
        *of_levels(rows),
        "",
        f"## Each block alone, {options.block_count} labels",
        "",
        *of_levels(blocks),
    ]
    return "\n".join(lines) + "\n"


def of_levels(rows: dict[str, Row]) -> Iterator[str]:
    """A table with a column for each noise level."""
    times = list(next(iter(rows.values())))
    yield f"| | {' | '.join(f't = {t}' for t in times)} |"
    yield "|---" * (len(times) + 1) + "|"
    for name, row in rows.items():
        yield f"| {name} | {' | '.join(cell(row[t]) for t in times)} |"


def cell(metrics: DepthMetrics) -> str:
    """Three figures."""
    return f"{metrics.abs_rel:.3f} / {metrics.rmse:.2f} / {metrics.delta1:.2f}"
