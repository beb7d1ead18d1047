"""Classifier guidance with and without Self-Attention Guidance: the table of four rows of arXiv:2210.00939.

    python -m tools.run experiments.classifier_experiment [--pictures 300] [--out FILE]

Empty prompt, CFG 1, a class for each picture, the classes in turn. Every row has the same reporting seeds;
scales were chosen by eye on seeds below 100. A plain row of twice the steps stands for equal cost. The
recogniser, which was trained on renders alone, judges; the Frechet distance is to renders.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from tqdm import tqdm

from ..classifier_head.head_files import load_classifier_head
from ..demo import model as demo
from ..demo.evaluate import render_scenes
from ..demo.measures import frechet_distance
from ..demo.recogniser import PAIRS, RECOGNISER_FILE, Recogniser, recognise
from ..demo.sheet import draw, pictures_to_uint8
from ..host.classifier.heads import HostedClassifierHead
from ..nodes.classifier_guidance import InnerClassifierGuidance
from ..nodes.self_attention_guidance import InnerSelfAttentionGuidance
from .markdown import table
from .node_inputs import with_defaults
from .seeds import REPORTING, REPORTING_REFERENCE

STEPS, BATCH = 20, 10
CLASSIFIER_SCALE, SAG_SCALE = 3.0, 0.75
RESAMPLES = 200
RESULT = Path(__file__).parents[1] / "docs/results/classifier_guidance.md"

ROWS: dict[str, tuple[bool, bool, int]] = {
    "none": (False, False, STEPS),
    "none, twice the steps": (False, False, 2 * STEPS),
    "SAG": (False, True, STEPS),
    "classifier": (True, False, STEPS),
    "SAG + classifier": (True, True, STEPS),
}
"""Name -> classifier, SAG, steps."""


def main() -> None:
    """Draws the rows, measures them and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=300, help="pictures per row")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with torch.inference_mode():
        recogniser = Recogniser().eval()
        recogniser.load_state_dict(demo.read_weights(demo.WEIGHTS / RECOGNISER_FILE))
        renders = render_scenes(REPORTING_REFERENCE.start, 500).pictures
        reference = recognise(recogniser, renders).features
        rows = {
            name: figures(recogniser, drawn(*row, options.pictures), reference) for name, row in ROWS.items()
        }
    options.out.write_text("\n".join(report(rows, options.pictures)) + "\n", encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))


def label_of(batch: int) -> int:
    """The class of a batch: a number in PAIRS."""
    return batch % len(PAIRS)


def drawn(by_classifier: bool, by_attention: bool, steps: int, count: int) -> Tensor:
    """Pictures (count, 256, 256, 3) in uint8, BATCH of each class in turn."""
    model, clip, vae = demo.load_all(demo.WEIGHTS)
    head = HostedClassifierHead.of(load_classifier_head(demo.WEIGHTS / demo.CLASSIFIER_HEAD_FILE))
    pictures = []
    for batch in tqdm(range(count // BATCH), desc=f"classifier {by_classifier}, SAG {by_attention}"):
        guided = guide(model, head, " ".join(PAIRS[label_of(batch)]), by_classifier, by_attention)
        drawn = draw(guided, clip, vae, [""] * BATCH, REPORTING[batch], steps, cfg=1.0)
        pictures.append(pictures_to_uint8(drawn))
    return torch.cat(pictures)


def guide(
    model: ModelPatcher,
    head: HostedClassifierHead,
    class_name: str,
    by_classifier: bool,
    by_attention: bool,
) -> Any:
    """The model with the guidances of a row."""
    if by_classifier:
        settings = with_defaults(InnerClassifierGuidance, class_name=class_name, scale=CLASSIFIER_SCALE)
        (model,) = InnerClassifierGuidance.execute(model, head, **settings).result
    if by_attention:
        settings = with_defaults(InnerSelfAttentionGuidance, scale=SAG_SCALE)
        (model,) = InnerSelfAttentionGuidance.execute(model, **settings).result
    return model


def figures(recogniser: Recogniser, pictures: Tensor, reference: Tensor) -> list[str]:
    """Frechet distance and share of the class, each with a standard error by resampling."""
    seen = recognise(recogniser, pictures)
    labels = torch.tensor([label_of(i // BATCH) for i in range(len(pictures))])
    hits = (seen.logits["objects"][torch.arange(len(labels)), labels] > 0).double()
    generator = torch.Generator().manual_seed(0)
    resampled = [torch.randint(len(hits), (len(hits),), generator=generator) for _ in range(RESAMPLES)]
    distances = torch.tensor([frechet_distance(seen.features[rows], reference) for rows in resampled])
    shares = torch.stack([hits[rows].mean() for rows in resampled])
    distance = frechet_distance(seen.features, reference)
    return [f"{distance:.2f} ± {distances.std():.2f}", f"{hits.mean():.1%} ± {shares.std():.1%}"]


def checksum(name: str) -> str:
    """The start of the SHA-256 of a file of the demo model."""
    return hashlib.sha256((demo.WEIGHTS / name).read_bytes()).hexdigest()[:12]


def report(rows: dict[str, list[str]], count: int) -> list[str]:
    """The lines of the file."""
    return [
        "# Classifier guidance, alone and with Self-Attention Guidance",
        "",
        "    python -m tools.run experiments.classifier_experiment",
        "",
        f"{count} images a row, empty prompt, CFG 1, {STEPS} steps of dpmpp_2m, the same seeds in every row. "
        f"Classifier scale {CLASSIFIER_SCALE:g}, SAG scale {SAG_SCALE:g} and otherwise defaults; both were "
        "chosen on other seeds. The judge was trained on renders alone and never saw an image of the model. "
        f"± is a standard error. SHA-256 of the weights: UNet {checksum(demo.UNET_FILE)}, head "
        f"{checksum(demo.CLASSIFIER_HEAD_FILE)}.",
        "",
        *table(["Frechet distance to renders", "the class is in the image"], rows),
    ]
