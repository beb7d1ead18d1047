"""Measures what training a depth head costs: time and memory of a step, beside those of a sampling step.

    python -m tools.run benchmarks.training_cost                        writes training_cost.md
    python -m tools.run --device gpu benchmarks.training_cost           the same on a GPU

Stable Diffusion 1.5 at 512 px with random weights, the node's default batch of 4 images; the VAE, and
Depth Anything 3 Mono Large, which labels the images of the template.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_depth_anything_3 import DA3Inference
from torch import Tensor

from ..depth_head.metrics import DepthRange
from ..depth_head.training import TrainingResult, TrainingSettings, train
from ..host.depth.head_training import AUTO, features_of, new_network
from ..host.sampling.frozen_model import FrozenModel, with_frozen_model
from .evaluations import evaluations, peak_bytes, seconds
from .models import REAL_SIZES, prompt
from .random_checkpoints import autoencoder, depth_anything, random_weight, shapes_of
from .speed import machine
from .speed_tables import MIB

TABLE = Path(__file__).with_suffix(".md")
BATCH, IMAGES = 4, 2
# The figures of held-out images take further passes before the first and after the last step.
TIMED_STEPS = 5
STEPS, DRAWN_IN = 1000, 20  # of the node, and of an image
LABELLED = 100  # images of a training
SIDE, LABELLING_SIDE = 512, 504  # pixels


def main() -> None:
    """Measure, then write and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=TABLE, help="file for the table")
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    of = REAL_SIZES["sd15"]
    with torch.inference_mode():
        label_cost = cost(labelling())
        encoding_cost = cost(encoding())
        model = of.model()
        plain = statistics.median(evaluations(model, 3, seconds, of.latent))
        plain_peak = max(evaluations(model, 1, peak_bytes, of.latent))
        took = seconds_of_a_step(model, of.latent)
        peak = peak_of_a_training(model, of.latent)
    image = DRAWN_IN * plain
    prepared = LABELLED * (label_cost.seconds + encoding_cost.seconds)
    out.write_text(
        f"""# What training a depth head costs

`python -m tools.run benchmarks.training_cost` on {machine()}, PyTorch {torch.__version__}. {of.title},
pixel_mlp, {BATCH} images a step. Memory is what PyTorch needs besides the weights of the model at work.

| | seconds | MiB |
|---|---|---|
| plain CFG step of one image | {plain:.3g} | {plain_peak / MIB:.0f} |
| label of one image, Depth Anything 3 Mono Large at {LABELLING_SIDE} px | {label_cost} |
| latent of one image, by the VAE | {encoding_cost} |
| training step | {took:.3g} | {peak / MIB:.0f} |

{STEPS:,} training steps take as long as drawing {STEPS * took / image:.0f} images of {DRAWN_IN} steps;
labels and latents of {LABELLED} images, as {prepared / image:.0f}.
""",
        encoding="utf-8",
    )
    print(out.read_text(encoding="utf-8"))


class Cost(NamedTuple):
    """What a call takes. As a string, two cells of the table."""

    seconds: float
    mib: float

    def __str__(self) -> str:
        return f"{self.seconds:.3g} | {self.mib:.0f}"


def cost(call: Callable[[], object]) -> Cost:
    """The median seconds of three calls, and the peak memory of one; a call before them loads the weights."""
    device = comfy.model_management.get_torch_device()
    call()
    return Cost(
        statistics.median(seconds(device, call)[1] for _ in range(3)), peak_bytes(device, call)[1] / MIB
    )


def labelling() -> Callable[[], object]:
    """Estimates the depth of an image as the template does, with random weights."""
    model = comfy.sd.load_diffusion_model_state_dict(random_weights(depth_anything()))
    settings = (LABELLING_SIDE, "upper_bound_resize", {"mode": "mono"})
    return lambda: DA3Inference.execute(model, torch.rand(1, SIDE, SIDE, 3), *settings)


def encoding() -> Callable[[], object]:
    """Encodes an image by the VAE of Stable Diffusion 1.5, with random weights."""
    vae = comfy.sd.VAE(sd=random_weights(shapes_of(autoencoder().state_dict())))
    return lambda: vae.encode(torch.rand(1, SIDE, SIDE, 3))


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights that preserve the magnitude of activations, as float16, by name."""
    generator = torch.Generator().manual_seed(0)
    return {name: random_weight(name, shape, generator) for name, shape in shapes.items()}


def training(model: ModelPatcher, size: tuple[int, ...], steps: int, finished: list[float]) -> TrainingResult:
    """Train a head on random latents. finished: gets the time at which each step ends."""
    network = new_network(model, "pixel_mlp", AUTO, AUTO, seed=0)
    latents, labels = torch.randn(IMAGES, *size[1:]), torch.rand(IMAGES, 1, *size[-2:])
    settings = TrainingSettings(steps, BATCH, learning_rate=0.002, seed=0, depth_range=DepthRange(1.0, 10.0))

    def learn(frozen: FrozenModel) -> TrainingResult:
        features = features_of(frozen, latents, list(network.taps))
        return train(
            network,
            features,
            labels.to(frozen.device),
            settings,
            lambda *_: finished.append(time.perf_counter()),
        )

    return with_frozen_model(model, prompt(model, 0), (BATCH, *size[1:]), learn)


def seconds_of_a_step(model: ModelPatcher, size: tuple[int, ...]) -> float:
    """The median of the steps."""
    finished: list[float] = []
    training(model, size, TIMED_STEPS, finished)
    return statistics.median(later - earlier for earlier, later in pairwise(finished))


def peak_of_a_training(model: ModelPatcher, size: tuple[int, ...]) -> float:
    """Peak bytes, the measurement on held-out images included."""
    device = comfy.model_management.get_torch_device()
    return peak_bytes(device, lambda: training(model, size, 1, []))[1]
