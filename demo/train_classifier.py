"""Trains the demo model's classifier head with the code behind Train Classifier Head.

    python -m tools.run demo.train_classifier [--family UNet] [--scenes 4000] [--steps 2500] [--seed 0]

Its classes are colour and shape of the main object, such as "red sphere". It reads the model in demo/weights,
on scenes that the model was not trained on, and is written to demo/weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import comfy.utils
import torch
from PIL import Image
from tqdm import tqdm

from ..classifier_head.head_files import save_classifier_head
from ..classifier_head.training import ClassifierTrainingSettings
from ..host.classifier.training import train_classifier_head
from ..host.depth.head_training import AUTO
from . import model as demo
from .labelled_scenes import labelled_scenes
from .renders import HELD_OUT
from .sheet import pictures_to_uint8

FIRST_SCENE = HELD_OUT + 60_000
SIZE = 256


def main() -> None:
    """Trains the head and writes its file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=demo.FAMILIES, default=demo.UNET)
    parser.add_argument("--scenes", type=int, default=4000, help="renders to train on")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the training")
    parser.add_argument("--out", type=Path, help="folder for the file, instead of demo/weights")
    parser.add_argument("--report", type=Path, help="PNG file for the report of the training")
    options = parser.parse_args()
    family = demo.FAMILIES[options.family]
    with torch.inference_mode():
        scenes = labelled_scenes(range(FIRST_SCENE, FIRST_SCENE + options.scenes), SIZE)
        clip = demo.load_clip(demo.WEIGHTS / demo.TEXT_FILE)
        with tqdm(total=options.scenes + options.steps, desc="encoding, training") as bar:
            comfy.utils.set_progress_bar_global_hook(lambda done, *_, **__: bar.update(done - bar.n))
            trained = train_classifier_head(
                demo.load_model(demo.WEIGHTS / family.model),
                demo.load_vae(demo.WEIGHTS / demo.AUTOENCODER_FILE),
                scenes.images,
                "\n".join(scenes.main_objects),
                AUTO,
                ClassifierTrainingSettings(options.steps, 16, 2e-3, options.seed),
                clip.encode_from_tokens_scheduled(clip.tokenize("")),
            )
        head = trained.head.head
        head.network.half()  # a float32 again when it is loaded
        folder = options.out or demo.WEIGHTS
        folder.mkdir(parents=True, exist_ok=True)
        save_classifier_head(folder / family.classifier_head, head)
    print(head.training)
    if options.report:
        Image.fromarray(pictures_to_uint8(trained.report[0]).numpy()).save(options.report)
