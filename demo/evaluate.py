"""Measures the demo model on held-out scenes.

    python -m tools.run demo.evaluate [--samples N] [--weights FOLDER]

The model draws the captions of scenes that it never saw. A network trained on renders alone (demo.recogniser)
says whether the prompts' objects are there, and gives the features for the Frechet distance to other renders.
Beside these figures stand those of the scenes' own renders, which are the best that could be reached, of the
renders after the autoencoder, and of the drawn pictures under a prompt that is not theirs, which is chance.
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
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from .measures import frechet_distance, psnr
from .ray_casting import render
from .recogniser import RECOGNISER_FILE, Recogniser, main_pair, recognise, recognition_scores, scene_labels
from .renders import HELD_OUT, to_uint8
from .scenes import sample_scene

if TYPE_CHECKING:
    from comfy.sd import VAE

OTHER_SCENES = HELD_OUT + 10_000
"""Seeds of the renders that every Frechet distance is measured to."""
BATCH = 10
SHEET_PICTURES = 64

Draw = Callable[[list[str], int], Tensor]
"""Prompts and a seed to pictures (N, 256, 256, 3) in [0, 1]: the model, guided or not, is inside."""


@dataclass(frozen=True)
class Scenes:
    """Held-out scenes and their renders."""

    captions: list[str]
    pictures: Tensor
    """(N, 256, 256, 3), uint8."""
    labels: dict[str, Tensor]
    """What the renders show, by the heads of the recogniser."""
    main: Tensor
    """(N,), number in PAIRS of the largest visible solid."""


def render_scenes(first_seed: int, count: int) -> Scenes:
    """The scenes of `count` seeds, rendered."""
    scenes = [sample_scene(seed) for seed in range(first_seed, first_seed + count)]
    renders = [render(scene) for scene in tqdm(scenes, desc="rendering", unit="img")]
    labels = [scene_labels(scene, seen.surface) for scene, seen in zip(scenes, renders, strict=True)]
    return Scenes(
        captions=[scene.caption for scene in scenes],
        pictures=torch.stack([torch.from_numpy(to_uint8(seen.rgb)) for seen in renders]),
        labels={head: torch.stack([label[head] for label in labels]) for head in labels[0]},
        main=torch.tensor(
            [main_pair(scene, seen.surface) for scene, seen in zip(scenes, renders, strict=True)]
        ),
    )


def draw_captions(draw: Draw, captions: list[str]) -> Tensor:
    """(N, 256, 256, 3), uint8, drawn in batches; the seed of a batch is the number of its first caption."""
    batches = tqdm(range(0, len(captions), BATCH), desc="drawing", unit="batch")
    return torch.cat([_to_uint8(draw(captions[first : first + BATCH], first)) for first in batches])


def autoencode(vae: VAE, pictures: Tensor) -> Tensor:
    """Pictures (N, H, W, 3) in uint8 encoded and decoded by the host's VAE."""
    batches = tqdm(pictures.split(BATCH), desc="autoencoding", unit="batch")
    return torch.cat([_to_uint8(vae.decode(vae.encode(batch.float() / 255))) for batch in batches])


def evaluate(recogniser: Recogniser, scenes: Scenes, reference: Tensor, pictures: Tensor) -> dict[str, float]:
    """All figures of pictures that should show the scenes; `reference` are the features of other renders."""
    seen = recognise(recogniser, pictures)
    return {
        "Frechet distance to other renders": frechet_distance(seen.features, reference),
        **recognition_scores(seen, scenes.labels, scenes.main),
    }


def seconds_per_image(draw: Draw, caption: str) -> float:
    """Median time to draw one picture alone, after everything is loaded."""
    times = []
    for seed in range(5):
        start = time.perf_counter()
        draw([caption], seed)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _to_uint8(pictures: Tensor) -> Tensor:
    return (pictures.cpu() * 255).round().clamp(0, 255).to(torch.uint8)


def _table(figures: dict[str, dict[str, float]]) -> str:
    rows = [["", *figures], ["---"] * (1 + len(figures))]
    for name in figures["renders"]:
        digits = ".3f" if name.startswith("Frechet") else ".1%"
        rows.append(
            [name, *(format(column[name], digits) if name in column else "" for column in figures.values())]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=500, help="held-out captions to draw")
    parser.add_argument("--weights", type=Path, help="folder of the demo model's files, else demo/weights")
    parser.add_argument(
        "--sheet", type=Path, help=f"PNG to write the first {SHEET_PICTURES} drawn pictures to"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()

    from .model import WEIGHTS, load_all, read_weights
    from .sheet import draw, save_sheet

    recogniser = Recogniser().eval()
    recogniser.load_state_dict(read_weights(WEIGHTS / RECOGNISER_FILE))
    model, clip, vae = load_all(options.weights or WEIGHTS)
    draw_with_model = partial(draw, model, clip, vae)

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
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
