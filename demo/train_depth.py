"""Trains the demo model's depth head and depth prior with the code behind the training nodes.

    python -m tools.run demo.train_depth head  [--scenes 1000] [--steps 3000]
    python -m tools.run demo.train_depth prior [--scenes 12000] [--steps 6000] [--size 32]

Writes to demo/weights. Training starts from scratch every time. The head reads the UNet in demo/weights, on
scenes that the UNet was not trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import comfy.utils
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..depth_head.depth_maps import read_depth_maps
from ..depth_head.head_files import save_depth_head
from ..depth_head.metrics import DepthRange
from ..depth_head.prior_files import save_depth_prior
from ..depth_head.training import TrainingSettings
from ..host.depth.head_training import AUTO, train_depth_head
from ..host.depth.priors import train
from ..nodes.demo_scenes import InnerDemoScenes
from . import model as demo
from .renders import HELD_OUT
from .scenes import FAR, NEAR
from .sheet import pictures_to_uint8

FIRST_SCENE = HELD_OUT + 40_000
SIZE = 256


def main() -> None:
    """Trains one of the two and writes its file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("head", "prior"))
    parser.add_argument("--scenes", type=int, help="labelled renders to train on")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--size", type=int, default=64, help="side of the prior's depth maps in pixels")
    parser.add_argument("--out", type=Path, help="folder for the file, instead of demo/weights")
    parser.add_argument("--report", type=Path, help="PNG file for the report of the training")
    options = parser.parse_args()
    folder = options.out or demo.WEIGHTS
    with torch.inference_mode():
        if options.what == "head":
            report = train_demo_head(
                folder / demo.DEPTH_HEAD_FILE, options.scenes or 1000, options.steps or 3000
            )
        else:
            report = train_demo_prior(
                folder / demo.DEPTH_PRIOR_FILE, options.scenes or 12_000, options.steps or 6000, options.size
            )
    if options.report:
        Image.fromarray(pictures_to_uint8(report[0]).numpy()).save(options.report)


def train_demo_head(path: Path, scenes: int, steps: int) -> Tensor:
    """Trains and writes a pixel MLP on the default blocks; returns the report (1, H, W, 3)."""
    images, depths = rendered(scenes, SIZE)
    clip = demo.load_clip(demo.WEIGHTS / demo.TEXT_FILE)
    with tqdm(total=scenes + steps, desc="encoding, training") as bar:
        comfy.utils.set_progress_bar_global_hook(lambda done, *_, **__: bar.update(done - bar.n))
        trained = train_depth_head(
            demo.load_model(demo.WEIGHTS / demo.UNET_FILE),
            demo.load_vae(demo.WEIGHTS / demo.AUTOENCODER_FILE),
            images,
            depths,
            "pixel_mlp",
            AUTO,
            AUTO,
            TrainingSettings(steps, 8, 2e-3, 0, DepthRange(NEAR, FAR)),
            clip.encode_from_tokens_scheduled(clip.tokenize("")),
        )
    save_depth_head(path, trained.head.head)
    return trained.report


def train_demo_prior(path: Path, scenes: int, steps: int, size: int) -> Tensor:
    """Trains and writes a depth prior; returns the report (1, H, W, 3)."""
    _, depths = rendered(scenes, size)
    with tqdm(total=steps, desc="training") as bar:
        prior, report = train(
            read_depth_maps(depths, "depths"),
            size,
            steps=steps,
            batch_size=16,
            learning_rate=1e-3,
            seed=0,
            on_step=lambda done, losses: bar.update(done - bar.n),
        )
    save_depth_prior(path, prior)
    return report


def rendered(scenes: int, size: int) -> tuple[Tensor, Tensor]:
    """Images and depth maps (N, size, size, 3) of the Demo Scenes node."""
    return InnerDemoScenes.execute(FIRST_SCENE, scenes, size).result
