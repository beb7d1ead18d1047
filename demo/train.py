"""Trains the demo model from scratch, one stage after another.

    python -m tools.run demo.train STAGE [--minutes M]

    renders      ray-casts the training scenes
    restore      makes checkpoints of demo/weights, so that training continues from the published model
    autoencoder  trains encoder and decoder on crops of the renders
    latents      encodes the renders
    diffusion    trains UNet and text encoder; writes a sample sheet at every checkpoint
    transformer  trains the transformer with the text encoder of demo/weights; writes sample sheets too
    decoder      trains the decoder alone; the UNet remains valid
    recogniser   trains the network with which demo.evaluate measures, and writes it to demo/weights
    depth_judge  trains the network that judges depth guidance, and writes it to demo/weights
    export       writes the averaged weights of UNet, text encoder and autoencoder to demo/weights
    export_transformer   writes those of the transformer

A stage that was interrupted resumes when it is called again, until its `--minutes` are used up.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from .denoisers import TextToFlow, TextToLatent
from .depth_judge import DEPTH_JUDGE_FILE
from .diffusion import train_diffusion
from .examples import JudgeTraining
from .latents import encode_shards, linear_preview
from .model import (
    TEXT_FILE,
    TRANSFORMER_FILE,
    WEIGHTS,
    export_transformer,
    export_weights,
    load_all,
    load_model,
    read_weights,
    restore_transformer,
    restore_weights,
    write_weights,
)
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
    "transformer",
    "decoder",
    "recogniser",
    "depth_judge",
    "export",
    "export_transformer",
)
SHEET_PICTURES = 16


def read_arguments() -> argparse.Namespace:
    """Stage, time, seed and folders."""
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
    parser.add_argument(
        "--keep-text",
        action="store_true",
        help="diffusion: keep the text encoder of demo/weights, with which the transformer was trained",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="recogniser, depth_judge: of the weights and of the batches"
    )
    parser.add_argument(
        "--out", type=Path, default=WEIGHTS, help="recogniser, depth_judge: folder for the file"
    )
    return parser.parse_args()


def main() -> None:
    """Runs a stage."""
    options = read_arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    renders, latents = options.work / "renders", options.work / "latents"
    autoencoder, diffusion = options.work / "autoencoder.pt", options.work / "diffusion.pt"
    transformer = options.work / "transformer.pt"
    device = comfy.model_management.get_torch_device().type
    match options.stage:
        case "renders":
            render_shards(renders, options.scenes, options.workers)
        case "restore":
            restore(diffusion, autoencoder, transformer)
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
            print(
                "LATENT_RGB and LATENT_RGB_BIAS for demo/latent_format.py:", linear_preview(renders, latents)
            )
        case "diffusion":
            train_unet(options, latents, diffusion, autoencoder, device)
        case "transformer":
            train_transformer(options, latents, transformer, device)
        case "recogniser":
            average = train_recogniser(judge_training(options, device, "examples"))
            options.out.mkdir(parents=True, exist_ok=True)
            write_weights(options.out / RECOGNISER_FILE, average)
        case "depth_judge":
            average = train_depth_judge(judge_training(options, device, "depth_examples"))
            options.out.mkdir(parents=True, exist_ok=True)
            write_weights(options.out / DEPTH_JUDGE_FILE, average)
        case "export":
            WEIGHTS.mkdir(exist_ok=True)
            export_weights(WEIGHTS, read_average(diffusion), read_average(autoencoder))
        case "export_transformer":
            export_transformer(WEIGHTS, read_average(transformer))


def restore(diffusion: Path, autoencoder: Path, transformer: Path) -> None:
    """Makes checkpoints of the published weights. Raises SystemExit if there are checkpoints already."""
    published = (*restore_weights(WEIGHTS), restore_transformer(WEIGHTS))
    checkpoints = (diffusion, autoencoder, transformer)
    for checkpoint in checkpoints:
        if checkpoint.exists():
            raise SystemExit(f"{checkpoint} exists: move it away to start from the published weights.")
    for checkpoint, weights in zip(checkpoints, published, strict=True):
        write_checkpoint(checkpoint, model=weights, average=weights)


def train_unet(
    options: argparse.Namespace, latents: Path, checkpoint: Path, autoencoder: Path, device: str
) -> None:
    """Trains UNet and text encoder. Draws a sample sheet at every checkpoint."""

    def draw_sheet(average: dict[str, Tensor], samples: int) -> None:
        export_weights(options.work, average, read_average(autoencoder))
        _write_sheet(options.work / f"sheet-{samples:07d}.png", "karras", *load_all(options.work))

    text = read_weights(WEIGHTS / TEXT_FILE) if options.keep_text else None
    model = TextToLatent(text)
    train_diffusion("diffusion", model, latents, checkpoint, options.minutes, device, draw_sheet)


def train_transformer(options: argparse.Namespace, latents: Path, checkpoint: Path, device: str) -> None:
    """Trains the transformer with the published text encoder. Draws a sample sheet at every checkpoint."""
    _, clip, vae = load_all(WEIGHTS)

    def draw_sheet(average: dict[str, Tensor], samples: int) -> None:
        export_transformer(options.work, average)
        model = load_model(options.work / TRANSFORMER_FILE)
        _write_sheet(options.work / f"transformer-{samples:07d}.png", "simple", model, clip, vae)

    # The host's rotary embedding has a backward pass only then; this process does nothing else.
    comfy.model_management.in_training = True
    flow = TextToFlow(read_weights(WEIGHTS / TEXT_FILE))
    train_diffusion("transformer", flow, latents, checkpoint, options.minutes, device, draw_sheet)


def judge_training(options: argparse.Namespace, device: str, examples: str) -> JudgeTraining:
    """The training of a judge, with its examples in this folder."""
    return JudgeTraining(
        options.work / "renders",
        options.work / examples,
        options.scenes,
        options.work / f"{options.stage}-{options.seed}.pt",
        options.minutes,
        device,
        options.workers,
        options.seed,
    )


def _write_sheet(path: Path, scheduler: str, model: ModelPatcher, clip: CLIP, vae: VAE) -> None:
    """Images of held-out captions, always the same, on one sheet."""
    prompts = [sample_scene(HELD_OUT + i).caption for i in range(SHEET_PICTURES)]
    save_sheet(draw(model, clip, vae, prompts, seed=1, scheduler=scheduler), path, columns=8)
