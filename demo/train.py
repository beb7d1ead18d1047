"""Trains the demo model from scratch, one stage after another.

    python -m tools.run demo.train STAGE [--minutes M]

    renders      ray-casts the training scenes
    restore      makes checkpoints of demo/weights, so that training continues from the published model
    autoencoder  trains encoder and decoder on crops of the renders
    latents      encodes the renders
    diffusion    trains UNet and text encoder; writes a sample sheet at every checkpoint
    decoder      trains the decoder alone; the UNet remains valid
    recogniser   trains the network with which demo.evaluate measures, and writes it to demo/weights
    depth_judge  trains the network that judges depth guidance, and writes it to demo/weights
    export       writes the averaged weights of UNet, text encoder and autoencoder to demo/weights

A stage that was interrupted resumes when it is called again, until its `--minutes` are used up.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from comfy.model_management import get_torch_device
from torch import Tensor

from .depth_judge import DEPTH_JUDGE_FILE
from .diffusion import train_diffusion
from .latents import encode_shards, linear_preview
from .model import WEIGHTS, export_weights, load_all, restore_weights, write_weights
from .progress import read_average, write_checkpoint
from .recogniser import RECOGNISER_FILE
from .renders import HELD_OUT, render_shards
from .scenes import sample_scene
from .sheet import draw, save_sheet
from .train_autoencoder import train_autoencoder
from .train_depth_judge import train_depth_judge
from .train_recogniser import train_recogniser

STAGES = (
    "renders",
    "restore",
    "autoencoder",
    "latents",
    "diffusion",
    "decoder",
    "recogniser",
    "depth_judge",
    "export",
)
SHEET_PICTURES = 16


def main() -> None:
    """Runs a stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--minutes", type=float, default=60, help="training time of the stage, earlier calls included"
    )
    parser.add_argument(
        "--scenes", type=int, default=12_000, help="training scenes to render, encode or label"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that render or label")
    parser.add_argument(
        "--work", type=Path, default=Path(".cache/demo"), help="folder for renders and checkpoints"
    )
    options = parser.parse_args()

    options.work.mkdir(parents=True, exist_ok=True)
    renders, latents = options.work / "renders", options.work / "latents"
    autoencoder, diffusion = options.work / "autoencoder.pt", options.work / "diffusion.pt"
    device = get_torch_device().type
    match options.stage:
        case "renders":
            render_shards(renders, options.scenes, options.workers)
        case "restore":
            for checkpoint in (autoencoder, diffusion):
                if checkpoint.exists():
                    parser.error(f"{checkpoint} exists: move it away to start from the published weights.")
            for checkpoint, weights in zip((diffusion, autoencoder), restore_weights(WEIGHTS), strict=True):
                write_checkpoint(checkpoint, model=weights, average=weights)
        case "autoencoder" | "decoder":
            train_autoencoder(
                renders,
                autoencoder,
                options.minutes,
                device,
                train_encoder=options.stage == "autoencoder",
            )
        case "latents":
            encode_shards(renders, latents, read_average(autoencoder), options.scenes, device)
            print("LATENT_RGB and LATENT_RGB_BIAS for demo/model.py:", linear_preview(renders, latents))
        case "diffusion":

            def write_sheet(average: dict[str, Tensor], samples: int) -> None:
                export_weights(options.work, average, read_average(autoencoder))
                prompts = [sample_scene(HELD_OUT + i).caption for i in range(SHEET_PICTURES)]
                save_sheet(
                    draw(*load_all(options.work), prompts, seed=1),
                    options.work / f"sheet-{samples:07d}.png",
                    columns=8,
                )

            train_diffusion(latents, diffusion, options.minutes, device, write_sheet)
        case "recogniser":
            average = train_recogniser(
                renders,
                options.work / "examples",
                options.scenes,
                options.work / "recogniser.pt",
                options.minutes,
                device,
                options.workers,
            )
            WEIGHTS.mkdir(exist_ok=True)
            write_weights(WEIGHTS / RECOGNISER_FILE, average)
        case "depth_judge":
            average = train_depth_judge(
                renders,
                options.work / "depth_examples",
                options.scenes,
                options.work / "depth_judge.pt",
                options.minutes,
                device,
                options.workers,
            )
            WEIGHTS.mkdir(exist_ok=True)
            write_weights(WEIGHTS / DEPTH_JUDGE_FILE, average)
        case "export":
            WEIGHTS.mkdir(exist_ok=True)
            export_weights(WEIGHTS, read_average(diffusion), read_average(autoencoder))
