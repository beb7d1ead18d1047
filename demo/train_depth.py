"""Trains the demo model's depth head and depth prior, through the code behind the nodes that do that.

    python -m tools.run demo.train_depth head  [--scenes 1000] [--steps N]      into demo/weights
    python -m tools.run demo.train_depth prior [--scenes 4000] [--steps N] [--size 64]

Anew from the first step; the UNet must be there. The scenes are of seeds that it never saw.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .renders import HELD_OUT
from .scenes import FAR, NEAR

FIRST_SCENE = HELD_OUT + 40_000
SIZE = 256


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("head", "prior"))
    parser.add_argument("--scenes", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--size", type=int, default=64, help="pixels at which the prior sees depth maps")
    parser.add_argument("--out", type=Path, help="folder for the file, else demo/weights")
    parser.add_argument("--report", type=Path, help="PNG to write the report to")
    options = parser.parse_args()
    from inner_guidance.demo import model as demo

    folder = options.out or demo.WEIGHTS
    with torch.inference_mode():
        if options.what == "head":
            report = train_head(folder / demo.DEPTH_HEAD_FILE, options.scenes or 1000, options.steps or 3000)
        else:
            report = train_prior(
                folder / demo.DEPTH_PRIOR_FILE, options.scenes or 12_000, options.steps or 6000, options.size
            )
    if options.report:
        Image.fromarray((report[0] * 255).round().to(torch.uint8).numpy()).save(options.report)


def train_head(path: Path, scenes: int, steps: int) -> Tensor:
    """Write a pixel MLP on the default blocks; its report (1, H, W, 3)."""
    import comfy.utils

    from inner_guidance.demo import model as demo
    from inner_guidance.depth_head.head_files import save_depth_head
    from inner_guidance.depth_head.metrics import DepthRange
    from inner_guidance.depth_head.training import TrainingSettings
    from inner_guidance.host.depth.head_training import AUTO, train_depth_head

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


def train_prior(path: Path, scenes: int, steps: int, size: int) -> Tensor:
    """Write a depth prior; its report (1, H, W, 3)."""
    from inner_guidance.depth_head.prior_files import save_depth_prior
    from inner_guidance.host.depth.priors import depth_maps, train

    _, depths = rendered(scenes, size)
    with tqdm(total=steps, desc="training") as bar:
        prior, report = train(
            depth_maps(depths),
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
    """Pictures and depth maps as IMAGEs, of the Demo Scenes node."""
    from inner_guidance.nodes.demo_scenes import InnerDemoScenes

    return InnerDemoScenes.execute(FIRST_SCENE, scenes, size).result
