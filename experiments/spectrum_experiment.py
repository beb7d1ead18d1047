"""Does a model look where the detail and the objects are? The frequency analysis of the SAG paper, version 1.

    python -m tools.run experiments.spectrum_experiment [--samples N]      writes attention_spectrum.md

Two measurements with the demo model. *Samples*: pictures that it draws, with the attention averaged over all
steps. *Renders*: scenes that it was not trained on, noised to a few timesteps, one evaluation each. Their
objects are known, so the overlap with them is measured too. Attention is recorded in every block, with the
prompt and without. Self-Attention Guidance on Stable Diffusion reads m0 without the prompt.

The paper claims more energy inside the mask at every frequency, in the mean over patches. A bootstrap over
the pictures tells how certain that is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import comfy.sample
import comfy.samplers
import torch
from comfy.model_management import get_torch_device
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor
from tqdm import tqdm

from ..demo import model as demo
from ..demo import sheet
from ..demo.ray_casting import FIRST_SOLID, render
from ..demo.scenes import sample_scene
from ..guidance.attention_spectrum import PATCH_SIZES, overlap
from ..guidance.self_attention import average_on_finest_grid
from ..host.recording.records import AttentionRecord, AttentionStep, Run
from ..nodes.record import InnerRecordAttention
from ..tools.setup_host import ROOT
from .kept_files import checksum
from .seeds import SPECTRUM
from .spectrum_figures import RESAMPLES, Excess, excess, inside, log_magnitudes, overlap_cell, table

TABLE = ROOT / "docs" / "results" / "attention_spectrum.md"
COMMAND = "python -m tools.run experiments.spectrum_experiment"
BLOCKS = "d0-d1,m0,u0-u3"
THRESHOLDS = (1.0, 1.3)
TIMES = (50, 200, 400, 600, 800)
RENDERS_PATCH = 16
BATCH = 10
RANDOM_MASKS = 50
PROMPTS = {"positive": "with the prompt", "negative": "without a prompt"}
ALL_BLOCKS = "all"

Attention = Mapping[str, Mapping[str, Tensor]]
"""Maps (N, h, w) by key of PROMPTS, then by block; ALL_BLOCKS is the mean of the others."""


def main() -> None:
    """Measures, and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--renders", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    started = time.monotonic()
    with torch.inference_mode():
        model = load()
        tables = [*sample_tables(model, options), *render_tables(model, options)]
    heading = [
        "# Does the demo model look where the detail and the objects are?",
        "",
        f"`{COMMAND} --samples {options.samples} --renders {options.renders}`: {options.samples} samples of "
        f"{options.steps} steps (dpmpp_2m, karras, CFG {options.cfg:g}), {options.renders} renders, "
        f"{(time.monotonic() - started) / 60:.0f} minutes on {get_torch_device()}. The SHA-256 of "
        f"unet.safetensors begins {model.checksum}.",
        "",
        "Rows: block and threshold. area: share of the image whose attention is above the threshold.",
        "",
        "Spectra: how much the magnitude of the patches inside exceeds that of all patches, in percent: mean "
        "over the frequencies / at the frequency with the smallest excess. In brackets: share of "
        f"{RESAMPLES} resamplings of the pictures in which it is above 0 at every frequency.",
        "",
        "Overlap: intersection over union with the objects, and how much that exceeds the mean of "
        f"{RANDOM_MASKS} random masks of the same area, in percent and in their standard deviations.",
        "",
    ]
    options.out.write_text("\n".join([*heading, *tables]) + "\n", encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))


class Model(NamedTuple):
    """The demo model with a recording attached, its record, and how the SHA-256 of the UNet begins."""

    recorded: ModelPatcher
    record: AttentionRecord
    clip: CLIP
    vae: VAE
    checksum: str


def sample_tables(model: Model, options: argparse.Namespace) -> Iterator[str]:
    """The tables of the pictures that the model draws."""
    pictures, attention = draw(model, options)
    logs = {size: log_magnitudes(pictures, size) for size in PATCH_SIZES}
    for prompt, title in PROMPTS.items():
        rows: dict[str, list[str | Excess]] = {}
        for block, maps in attention[prompt].items():
            for psi in THRESHOLDS:
                mask = maps > psi
                found = [excess(logs[size], inside(mask, pictures, size)) for size in PATCH_SIZES]
                rows[f"{block} > {psi:g}"] = [f"{mask.float().mean():.0%}", *found]
        yield from table(f"Samples, {title}", ["area", *(f"{size} px" for size in PATCH_SIZES)], rows)


def render_tables(model: Model, options: argparse.Namespace) -> Iterator[str]:
    """The tables of renders: spectra, then overlaps."""
    pictures, objects, attention = evaluate_renders(model, options)
    logs = log_magnitudes(pictures, RENDERS_PATCH)
    columns = [f"t = {t}" for t in TIMES]
    for prompt, title in PROMPTS.items():
        spectra: dict[str, list[Excess]] = {}
        overlaps: dict[str, list[str]] = {}
        for block in attention[TIMES[0]][prompt]:
            for psi in THRESHOLDS:
                masks = [attention[t][prompt][block] > psi for t in TIMES]
                row = f"{block} > {psi:g}"
                spectra[row] = [excess(logs, inside(mask, pictures, RENDERS_PATCH)) for mask in masks]
                found = [overlap(mask.float(), 0.5, objects, RANDOM_MASKS, seed=0) for mask in masks]
                overlaps[row] = [overlap_cell(o) for o in found]
        yield from table(f"Renders, patches of {RENDERS_PATCH} px, {title}", columns, spectra)
        yield from table(f"Renders, overlap with the objects, {title}", columns, overlaps)


def draw(model: Model, options: argparse.Namespace) -> tuple[Tensor, Attention]:
    """Pictures (N, H, W, 3) of the captions of unseen scenes, and the attention while they were drawn."""
    captions = [sample_scene(SPECTRUM[i]).caption for i in range(options.samples)]
    pictures: list[Tensor] = []
    runs: dict[str, list[dict[str, Tensor]]] = {name: [] for name in PROMPTS}
    for first in tqdm(range(0, len(captions), BATCH), desc="samples", unit="batch"):
        batch = captions[first : first + BATCH]
        drawn = sheet.draw(
            model.recorded, model.clip, model.vae, batch, seed=first, steps=options.steps, cfg=options.cfg
        )
        pictures.append(drawn.clamp(0, 1))
        for branch, found in mean_attention(model.record.runs[-1]).items():
            runs[branch].append(found)
    return torch.cat(pictures), {branch: concatenate(found) for branch, found in runs.items()}


def evaluate_renders(
    model: Model, options: argparse.Namespace
) -> tuple[Tensor, Tensor, dict[int, Attention]]:
    """Renders (N, H, W, 3), the masks of their objects (N, H, W), and the attention by timestep.

    The prompt is the caption of the scene; "without a prompt" is with the empty one.
    """
    pictures, objects = [], []
    runs: dict[int, dict[str, list[dict[str, Tensor]]]] = {t: {name: [] for name in PROMPTS} for t in TIMES}
    for first in tqdm(range(0, options.renders, BATCH), desc="renders", unit="batch"):
        scenes = [sample_scene(SPECTRUM[i]) for i in range(first, min(first + BATCH, options.renders))]
        seen = [render(scene) for scene in scenes]
        pictures.append(torch.stack([one.rgb.movedim(0, -1) for one in seen]))
        objects.append(torch.stack([one.surface >= FIRST_SOLID for one in seen]).float())
        latent = model.vae.encode(pictures[-1])
        prompts = {"positive": [scene.caption for scene in scenes], "negative": [""]}
        for t in TIMES:
            for name, texts in prompts.items():
                runs[t][name].append(evaluate_once(model, latent, t, texts, seed=first))
    attention: dict[int, Attention] = {
        t: {name: concatenate(found) for name, found in of_t.items()} for t, of_t in runs.items()
    }
    return torch.cat(pictures), torch.cat(objects), attention


def evaluate_once(model: Model, latent: Tensor, t: int, texts: Sequence[str], seed: int) -> dict[str, Tensor]:
    """The attention of one evaluation of latents that are noised to timestep t, by block."""
    prompt = sheet.conditioning(model.clip, texts)
    model_sampling: Any = model.recorded.get_model_object("model_sampling")
    sigma = model_sampling.sigma(torch.tensor(t))
    comfy.sample.sample_custom(
        model.recorded,
        comfy.sample.prepare_noise(latent, seed),
        1.0,
        comfy.samplers.sampler_object("euler"),
        torch.tensor([float(sigma), 0.0]),
        prompt,
        prompt,
        latent,
        disable_pbar=True,
        seed=seed,
    )
    return mean_attention(model.record.runs[-1])["positive"]


def load() -> Model:
    """The demo model from its weights."""
    unet, clip, vae = demo.load_all(demo.WEIGHTS)
    recorded, record = InnerRecordAttention.execute(
        unet,
        BLOCKS,
        start_percent=0.0,
        end_percent=1.0,
        max_steps=1000,
        prompt=False,
        preview=False,
    ).result
    return Model(recorded, record, clip, vae, checksum(demo.WEIGHTS / demo.UNET_FILE))


def mean_attention(run: Run[AttentionStep]) -> dict[str, dict[str, Tensor]]:
    """The attention of a run by branch and block, (B, h, w), the mean over its steps."""
    found: dict[str, dict[str, Tensor]] = {}
    for branch, layer in run.steps[0].received:
        maps = [step.received[branch, layer].float() for step in run.steps]
        found.setdefault(branch, {})[layer.partition(".")[0]] = torch.stack(maps).mean(dim=0)
    for of_blocks in found.values():
        of_blocks[ALL_BLOCKS] = average_on_finest_grid(list(of_blocks.values()))
    return found


def concatenate(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The maps of all batches, by block."""
    return {block: torch.cat([batch[block] for batch in batches]) for block in batches[0]}
