"""Measures the demo model on held-out scenes.

    python -m tools.run demo.evaluate [--samples N] [--weights FOLDER]

The model draws the captions of scenes that it was not trained on. A network trained on renders alone
(demo/recogniser.py) tells whether the objects of the prompts are there, and gives the features for the
Frechet distance to other renders. For comparison, the table has the same figures for three more sets: the
scenes' own renders (the best possible result), these renders after the autoencoder, and the drawn pictures
with the prompts of others (chance).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from comfy.sd import VAE
from torch import Tensor
from tqdm import tqdm

from .measures import frechet_distance, psnr
from .model import FAMILIES, UNET, WEIGHTS, load_all, read_weights
from .ray_casting import render
from .recogniser import RECOGNISER_FILE, Recogniser, main_pair, recognise, recognition_scores, scene_labels
from .renders import HELD_OUT, to_uint8
from .scenes import sample_scene
from .sheet import draw, pictures_to_uint8, save_sheet

OTHER_SCENES = HELD_OUT + 10_000
"""Seeds of the renders that every Frechet distance is measured to."""
BATCH = 10
SHEET_PICTURES = 64

Draw = Callable[[list[str], int], Tensor]
"""Draws prompts with a seed: pictures (N, 256, 256, 3) in [0, 1]."""


@dataclass(frozen=True)
class RenderedScenes:
    """Held-out scenes and their renders."""

    captions: list[str]
    pictures: Tensor
    """(N, 256, 256, 3), uint8."""
    labels: dict[str, Tensor]
    """The labels of the renders, by head of the recogniser."""
    main: Tensor
    """(N,), number in PAIRS of the largest visible solid."""


def render_scenes(first_seed: int, count: int) -> RenderedScenes:
    """The scenes of `count` seeds, rendered."""
    scenes = [sample_scene(seed) for seed in range(first_seed, first_seed + count)]
    renders = [render(scene) for scene in tqdm(scenes, desc="rendering", unit="img")]
    labels = [scene_labels(scene, seen.surface) for scene, seen in zip(scenes, renders, strict=True)]
    return RenderedScenes(
        captions=[scene.caption for scene in scenes],
        pictures=torch.stack([torch.from_numpy(to_uint8(seen.rgb)) for seen in renders]),
        labels={head: torch.stack([label[head] for label in labels]) for head in labels[0]},
        main=torch.tensor(
            [main_pair(scene, seen.surface) for scene, seen in zip(scenes, renders, strict=True)]
        ),
    )


def draw_captions(draw_batch: Draw, captions: list[str]) -> Tensor:
    """Pictures (N, 256, 256, 3) in uint8. The seed of a batch is the number of its first caption."""
    batches = tqdm(range(0, len(captions), BATCH), desc="drawing", unit="batch")
    return torch.cat(
        [pictures_to_uint8(draw_batch(captions[first : first + BATCH], first)) for first in batches]
    )


def autoencode(vae: VAE, pictures: Tensor) -> Tensor:
    """Pictures (N, H, W, 3) in uint8 after the autoencoder."""
    batches = tqdm(pictures.split(BATCH), desc="autoencoding", unit="batch")
    return torch.cat([pictures_to_uint8(vae.decode(vae.encode(batch.float() / 255))) for batch in batches])


def evaluate(
    recogniser: Recogniser, scenes: RenderedScenes, reference: Tensor, pictures: Tensor
) -> dict[str, float]:
    """All figures of pictures that should show the scenes. reference: features of other renders, (M, C)."""
    seen = recognise(recogniser, pictures)
    return {
        "Frechet distance to other renders": frechet_distance(seen.features, reference),
        **recognition_scores(seen, scenes.labels, scenes.main),
    }


def seconds_per_image(draw_batch: Draw, caption: str) -> float:
    """Median time to draw one picture alone, with everything loaded."""
    times = []
    for seed in range(5):
        start = time.perf_counter()
        draw_batch([caption], seed)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _table(figures: dict[str, dict[str, float]]) -> str:
    rows = [["", *figures], ["---"] * (1 + len(figures))]
    for name in figures["renders"]:
        digits = ".3f" if name.startswith("Frechet") else ".1%"
        rows.append(
            [name, *(format(column[name], digits) if name in column else "" for column in figures.values())]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Draws, measures, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=FAMILIES, default=UNET, help="which of the two models draws")
    parser.add_argument("--samples", type=int, default=500, help="held-out captions to draw")
    parser.add_argument(
        "--weights", type=Path, help="folder of the demo model's files, instead of demo/weights"
    )
    parser.add_argument("--sheet", type=Path, help=f"PNG file for the first {SHEET_PICTURES} drawn pictures")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()

    recogniser = Recogniser().eval()
    recogniser.load_state_dict(read_weights(WEIGHTS / RECOGNISER_FILE))
    model, clip, vae = load_all(options.weights or WEIGHTS, options.family)
    draw_with_model = partial(draw, model, clip, vae, scheduler=FAMILIES[options.family].scheduler)

    scenes = render_scenes(HELD_OUT, options.samples)
    drawn = draw_captions(draw_with_model, scenes.captions)
    if options.sheet:
        save_sheet(drawn[:SHEET_PICTURES] / 255, options.sheet, columns=8)
    autoencoded = autoencode(vae, scenes.pictures)
    reference = recognise(recogniser, render_scenes(OTHER_SCENES, options.samples).pictures).features
    measure = partial(evaluate, recogniser, scenes, reference)
    figures = {
        "renders": measure(scenes.pictures),
        "autoencoded renders": measure(autoencoded),
        "drawn": measure(drawn),
        "drawn for another prompt": recognition_scores(
            recognise(recogniser, drawn.roll(1, 0)), scenes.labels, scenes.main
        ),
    }
    decibels = psnr(autoencoded / 255, scenes.pictures / 255)
    seconds = seconds_per_image(draw_with_model, scenes.captions[0])

    print(f"{options.samples} held-out scenes\n\n{_table(figures)}\n")
    print(f"The autoencoder reaches {decibels:.1f} dB. A picture of 20 steps takes {seconds:.1f} seconds.")
    if options.json:
        figures["model"] = {
            "samples": options.samples,
            "autoencoder PSNR": decibels,
            "seconds per image": seconds,
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
