"""Trains the demo model's depth heads and depth prior with the code behind the training nodes.

    python -m tools.run demo.train_depth head   [--family UNet] [--scenes 1000] [--steps 3000]
    python -m tools.run demo.train_depth latent [--scenes 10000] [--steps 3000] [--work FOLDER]
    python -m tools.run demo.train_depth prior  [--scenes 12000] [--steps 6000] [--size 32] [--seed 0]
    python -m tools.run demo.train_depth calibrate

Writes to demo/weights. Training starts from scratch every time. The head reads the model in demo/weights, on
scenes that it was not trained on. The latent head reads only the latents that `demo.train latents` has
written to the work folder.

A training calibrates its head. `calibrate` does that for heads in demo/weights or in --out that have no
calibration, and changes nothing else in them. A prior needs none.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import comfy.utils
import torch
from comfy.model_management import get_torch_device
from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..depth_head.architectures import LATENT
from ..depth_head.depth_maps import read_depth_maps
from ..depth_head.fitting import Features
from ..depth_head.head import DepthHead
from ..depth_head.head_files import load_depth_head, save_depth_head
from ..depth_head.head_report import draw_head_report
from ..depth_head.metrics import DepthRange
from ..depth_head.prior_files import save_depth_prior
from ..depth_head.training import MOST_READ, Evaluation, TrainingSettings, train
from ..host.depth.calibration import calibration_of
from ..host.depth.estimation import as_sampled
from ..host.depth.head_training import (
    AUTO,
    estimates_of,
    features_of,
    random_network,
    summary,
    train_depth_head,
)
from ..host.depth.heads import latent_space, reads_latents
from ..host.depth.priors import train_depth_prior
from ..host.sampling.frozen_model import FrozenModel, with_frozen_model
from . import model as demo
from .depth_judge import depth_label
from .labelled_scenes import labelled_scenes
from .latents import load_latents
from .ray_casting import render
from .renders import HELD_OUT
from .scenes import FAR, NEAR, sample_scene
from .sheet import pictures_to_uint8

FIRST_SCENE = HELD_OUT + 40_000
# Scenes that nothing was trained on, which calibrate existing heads.
FIRST_UNSEEN = HELD_OUT + 55_000
SIZE, LABEL_SIZE = 256, 64
BATCH = 8


def main() -> None:
    """Trains one of them and writes its file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("head", "latent", "prior", "calibrate"))
    parser.add_argument("--family", choices=demo.FAMILIES, default=demo.UNET, help="of the head's model")
    parser.add_argument("--scenes", type=int, help="labelled renders to train on")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--work", type=Path, default=Path(".cache/demo"), help="work folder of demo.train")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the batches")
    parser.add_argument("--size", type=int, default=64, help="side of the prior's depth maps in pixels")
    parser.add_argument("--out", type=Path, help="folder for the file, instead of demo/weights")
    parser.add_argument("--report", type=Path, help="PNG file for the report of the training")
    options = parser.parse_args()
    folder = options.out or demo.WEIGHTS
    with torch.inference_mode():
        if options.what == "calibrate":
            calibrate_demo_heads(folder)
            return
        if options.what == "head":
            family = demo.FAMILIES[options.family]
            report = train_demo_head(
                demo.WEIGHTS / family.model,
                folder / family.depth_head,
                options.scenes or 1000,
                options.steps or 3000,
                options.seed,
            )
        elif options.what == "latent":
            report = train_demo_latent_head(
                folder / demo.LATENT_HEAD_FILE,
                options.work / "latents",
                options.scenes or 10_000,
                options.steps or 3000,
                options.seed,
            )
        else:
            report = train_demo_prior(
                folder / demo.DEPTH_PRIOR_FILE,
                options.scenes or 12_000,
                options.steps or 6000,
                options.size,
                options.seed,
            )
    if options.report:
        Image.fromarray(pictures_to_uint8(report[0]).numpy()).save(options.report)


def train_demo_head(model: Path, path: Path, scenes: int, steps: int, seed: int) -> Tensor:
    """Trains and writes a pixel MLP on the default blocks of a model; returns the report (1, H, W, 3)."""
    images, depths = rendered(scenes, SIZE)
    clip = demo.load_clip(demo.WEIGHTS / demo.TEXT_FILE)
    with tqdm(total=scenes + steps, desc="encoding, training") as bar:
        comfy.utils.set_progress_bar_global_hook(lambda done, *_, **__: bar.update(done - bar.n))
        trained = train_depth_head(
            demo.load_model(model),
            demo.load_vae(demo.WEIGHTS / demo.AUTOENCODER_FILE),
            images,
            depths,
            "pixel_mlp",
            AUTO,
            AUTO,
            TrainingSettings(steps, BATCH, 2e-3, seed, DepthRange(NEAR, FAR)),
            clip.encode_from_tokens_scheduled(clip.tokenize("")),
        )
    save_depth_head(path, trained.head.head)
    return trained.report


def calibrate_demo_heads(folder: Path) -> None:
    """Calibrates the depth heads in a folder that are not, on the models there or else in demo/weights."""
    models = {family.depth_head: family.model for family in demo.FAMILIES.values()}
    images, _ = rendered(MOST_READ, SIZE, FIRST_UNSEEN)
    vae = demo.load_vae(demo.WEIGHTS / demo.AUTOENCODER_FILE)
    latents = torch.cat([vae.encode(image).cpu() for image in images.split(1)])
    for path in (folder / file for file in (*models, demo.LATENT_HEAD_FILE)):
        if not path.exists() or (head := load_depth_head(path)).calibration is not None:
            continue
        file = models.get(path.name, demo.UNET_FILE)
        model = demo.load_model((folder if (folder / file).exists() else demo.WEIGHTS) / file)
        calibration = calibration_of(readings_of(model, head, latents))
        if reads_latents(head):
            head.network.half()
        save_depth_head(path, replace(head, calibration=calibration))
        print(f"{path.name}: {calibration.consistency}")


def readings_of(model: ModelPatcher, head: DepthHead, latents: Tensor) -> dict[str, Tensor]:
    """What a head reads from the latents of images: branch -> (N, len(CHECKED_TIMES), h, w)."""
    rows, size = torch.arange(len(latents)), latents.shape[-2:]
    settings = TrainingSettings(0, BATCH, 0.0, 0, head.depth_range)

    def read(features: Features, device: torch.device) -> dict[str, Tensor]:
        labels = torch.zeros(len(latents), 1, *size, device=device)
        return Evaluation(head.network.to(device), features, labels, settings).readings(rows)

    def read_features(frozen: FrozenModel) -> dict[str, Tensor]:
        return read(features_of(frozen, latents, list(head.network.taps)), frozen.device)

    if reads_latents(head):
        device = get_torch_device()
        return read(estimates_of(as_sampled(model, latents), device), device)
    clip = demo.load_clip(demo.WEIGHTS / demo.TEXT_FILE)
    no_words = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    return with_frozen_model(model, no_words, (BATCH, *latents.shape[1:]), read_features)


def train_demo_latent_head(path: Path, latents: Path, scenes: int, steps: int, seed: int) -> Tensor:
    """Trains and writes a latent head, in half precision; returns the report (1, H, W, 3)."""
    seeds, encoded = load_latents(latents)
    encoded = encoded[:scenes]
    progress = tqdm(seeds[:scenes], desc="rendering depth", unit="scene")
    labels = torch.stack([depth_label(render(sample_scene(seed), LABEL_SIZE).depth) for seed in progress])
    settings = TrainingSettings(steps, 16, 2e-3, seed, DepthRange(NEAR, FAR), held_out=0.02)
    space = latent_space(demo.load_model(demo.WEIGHTS / demo.UNET_FILE))
    device = get_torch_device()
    network = random_network(LATENT, {"channels": space.channels}, seed)
    with tqdm(total=steps, desc="training", unit="step") as bar:
        result = train(
            network,
            estimates_of(encoded, device),
            labels.to(device),
            settings,
            lambda done, losses: bar.update(done - bar.n),
        )
    head = DepthHead(
        network.half(),
        space,
        settings.depth_range,
        summary(result, settings, len(encoded)),
        calibration=calibration_of(result.readings),
    )
    save_depth_head(path, head)
    pictures = [render(sample_scene(seeds[i])).rgb.movedim(0, -1) for i in result.shown]
    heading = f"latent; {steps} steps on {scenes} renders"
    return draw_head_report(result, torch.stack(pictures), labels[result.shown], heading)[None]


def train_demo_prior(path: Path, scenes: int, steps: int, size: int, seed: int) -> Tensor:
    """Trains and writes a depth prior; returns the report (1, H, W, 3)."""
    _, depths = rendered(scenes, size)
    with tqdm(total=steps, desc="training") as bar:
        prior, report = train_depth_prior(
            read_depth_maps(depths, "depths"),
            size,
            steps=steps,
            batch_size=16,
            learning_rate=1e-3,
            seed=seed,
            on_step=lambda done, losses: bar.update(done - bar.n),
        )
    save_depth_prior(path, prior)
    return report


def rendered(scenes: int, size: int, first: int = FIRST_SCENE) -> tuple[Tensor, Tensor]:
    """Images and depth maps (N, size, size, 3) of consecutive scenes."""
    found = labelled_scenes(range(first, first + scenes), size)
    return found.images, found.depths
