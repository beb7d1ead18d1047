"""Which depth head should lead to a target: one that reads features, or one that reads latents?

    python -m tools.run experiments.latent_head      writes latent_head.md

The prompts describe the scenes that the target depth comes from. A depth network and a recogniser judge the
pictures; both were trained on renders alone. The seeds are not those of dag_experiment.py: settings may be
chosen by this table.

Pictures are kept in the work folder, so a second call resumes an interrupted one.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import comfy.sample
import torch
import torch.nn.functional as F
from comfy.model_management import get_torch_device
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from ..demo import model as demo
from ..demo.depth_judge import DEPTH_JUDGE_FILE, DepthJudge, judge
from ..demo.ray_casting import Render, render
from ..demo.recogniser import RECOGNISER_FILE, Recogniser, main_pair, recognise, scene_labels
from ..demo.scenes import FAR, NEAR, Scene, sample_scene
from ..depth_head.head_files import load_depth_head
from ..depth_head.metrics import DepthRange
from ..host.depth.heads import HostedDepthHead
from ..nodes.depth_aware_guidance import InnerDepthAwareGuidance
from ..tools.setup_host import ROOT
from . import markdown
from .dag_figures import abs_rel_after_alignment, fidelity
from .dag_pictures import decode
from .dag_rows import NONE, only
from .kept_files import checksum, save
from .paired_bootstrap import LEVEL, Bootstrapped, bootstrap, cell, mean, resamples
from .seeds import LATENT_HEAD_TUNING

COMMAND = "python -m tools.run experiments.latent_head"
TABLE = ROOT / "docs" / "results" / "latent_head.md"
BATCH = 16
STEPS, CFG, SAMPLER, SCHEDULER = 12, 3.0, "dpmpp_2m", "karras"


class Row(NamedTuple):
    """A head's file, None without guidance, and inputs of the node that are not its defaults."""

    head: str | None
    settings: Mapping[str, float] = {}


ROWS = {
    NONE: Row(None),
    "features": Row(demo.DEPTH_HEAD_FILE, only("target")),
    "latent, half as strong": Row(demo.LATENT_HEAD_FILE, only("target", 0.5)),
    "latent": Row(demo.LATENT_HEAD_FILE, only("target")),
    "latent, twice as strong": Row(demo.LATENT_HEAD_FILE, only("target", 2.0)),
}


class Drawn(NamedTuple):
    """Pictures (N, 256, 256, 3) in uint8, and the seconds that the sampling of one took."""

    pictures: Tensor
    seconds: float


def main() -> None:
    """Draws all rows, judges them, writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=64, help=f"in each row, a multiple of {BATCH}")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="draw these alone, and write no table")
    parser.add_argument("--work", type=Path, default=Path(".cache/latent_head"))
    options = parser.parse_args()
    with torch.inference_mode():
        scenes = [sample_scene(LATENT_HEAD_TUNING[i]) for i in range(options.pictures)]
        seen = [render(scene) for scene in tqdm(scenes, desc="rendering")]
        rows = {name: row for name, row in ROWS.items() if name in (options.rows or ROWS)}
        drawn = {
            name: kept(options.work, row, scenes, seen) for name, row in tqdm(rows.items(), desc="drawing")
        }
        if options.rows:
            return
        lines = table(drawn, scenes, seen)
    TABLE.write_text("\n".join(lines), encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))


def kept(work: Path, row: Row, scenes: Sequence[Scene], seen: Sequence[Render]) -> Drawn:
    """`draw`, or its earlier result with the same weights and settings."""
    files = (demo.UNET_FILE, *([row.head] if row.head else []))
    made_by = [checksum(demo.WEIGHTS / file) for file in files] + [
        f"{n}={v:g}" for n, v in row.settings.items()
    ]
    path = work / f"{len(scenes)}-{hashlib.sha256(' '.join(made_by).encode()).hexdigest()[:12]}.safetensors"
    if not path.exists():
        drawn = draw(row, scenes, seen)
        save(path, pictures=drawn.pictures, seconds=torch.tensor(drawn.seconds))
    found = load_file(path)
    return Drawn(found["pictures"], float(found["seconds"]))


def draw(row: Row, scenes: Sequence[Scene], seen: Sequence[Render]) -> Drawn:
    """The pictures of a row, one of each scene."""
    model, clip, vae = demo.load_all(demo.WEIGHTS)
    pictures, seconds = [], 0.0

    def conditioning(texts: Sequence[str]) -> list[list[Any]]:
        return [[torch.cat([clip.encode_from_tokens(clip.tokenize(text)) for text in texts]), {}]]

    for first in range(0, len(scenes), BATCH):
        guided = model
        if row.head is not None:
            depths = torch.stack([relative_depth(one) for one in seen[first : first + BATCH]])
            inputs: dict[str, Any] = {given.id: given.default for given in node_inputs()}
            head = HostedDepthHead.of(load_depth_head(demo.WEIGHTS / row.head))
            inputs |= {
                "model": model,
                "depth_head": head,
                "target_depth": depths[..., None].expand(-1, -1, -1, 3),
            }
            (guided,) = InnerDepthAwareGuidance.execute(**inputs | dict(row.settings)).result
        latent = torch.zeros(BATCH, 4, 32, 32)
        noise = comfy.sample.prepare_noise(latent, first)
        prompts = conditioning([scene.caption for scene in scenes[first : first + BATCH]])
        started = time.process_time()
        samples = comfy.sample.sample(
            guided,
            noise,
            STEPS,
            CFG,
            SAMPLER,
            SCHEDULER,
            prompts,
            conditioning([""]),
            latent,
            seed=first,
            disable_pbar=True,
        )
        seconds += time.process_time() - started
        pictures.append(decode(vae, samples.cpu()))
    return Drawn(torch.cat(pictures), seconds / len(scenes))


def node_inputs() -> Sequence[Any]:
    """The inputs of the node that have a value without a connection."""
    inputs = InnerDepthAwareGuidance.define_schema().inputs
    return [given for given in inputs if getattr(given, "default", None) is not None]


def relative_depth(seen: Render) -> Tensor:
    """(H, W), near = 1."""
    return DepthRange(NEAR, FAR).relative(seen.depth)


def table(drawn: Mapping[str, Drawn], scenes: Sequence[Scene], seen: Sequence[Render]) -> list[str]:
    """The lines of the table."""
    depth_judge, recogniser = DepthJudge().eval(), Recogniser().eval()
    depth_judge.load_state_dict(demo.read_weights(demo.WEIGHTS / DEPTH_JUDGE_FILE))
    recogniser.load_state_dict(demo.read_weights(demo.WEIGHTS / RECOGNISER_FILE))
    pairs = list(zip(scenes, seen, strict=True))
    present = torch.stack([scene_labels(scene, one.surface)["objects"] for scene, one in pairs])
    main_objects = torch.tensor([main_pair(scene, one.surface) for scene, one in pairs])

    def figures(pictures: Tensor) -> list[Bootstrapped]:
        depth = judge(depth_judge, pictures).depth
        truth = F.interpolate(
            torch.stack([relative_depth(one) for one in seen])[:, None], depth.shape[-2:], mode="area"
        )
        objects = recognise(recogniser, pictures).logits["objects"].sigmoid()
        values = (
            abs_rel_after_alignment(depth, truth, NEAR, FAR),
            *fidelity(objects, present, main_objects),
        )
        return [bootstrap(mean, of_picture, resamples(len(scenes))) for of_picture in values]

    measured = {name: figures(one.pictures) for name, one in drawn.items()}
    plain = drawn[NONE].seconds
    rows = {
        name: [
            *(
                cell(found, None if name == NONE else baseline)
                for found, baseline in zip(of_row, measured[NONE], strict=True)
            ),
            f"{drawn[name].seconds:.2f} ({drawn[name].seconds / plain:.2f})",
        ]
        for name, of_row in measured.items()
    }
    files = ("unet", "depth_head", "latent_head", "depth_judge")
    sums = ", ".join(f"{name} begins {checksum(demo.WEIGHTS / f'{name}.safetensors')}" for name in files)
    return [
        "# Features or latents: which head for a target?",
        "",
        f"`{COMMAND} --pictures {len(scenes)}` on {get_torch_device()}; SHA-256 of {sums}.",
        "",
        f"{len(scenes)} pictures a row, {STEPS} steps of {SAMPLER}, {SCHEDULER}, CFG {CFG:g}, prompts that "
        "describe the scenes whose depth is the target. In brackets: the change from the row without "
        f"guidance and its {LEVEL:.0%} interval, from a bootstrap over the seeds, bold where it excludes 0; "
        "behind the CPU seconds of a picture: their ratio to that row's.",
        "",
        "These are tuning seeds, on which the latent head's form was chosen: a comparison, no figure to "
        "report.",
        "",
        "- AbsRel to the target: the depth judge's depth against the target, after scale and shift.",
        "- main object, objects found: of those that the prompt names, by the recogniser.",
        "",
        *markdown.table(["AbsRel to the target", "main object", "objects found", "CPU s/image"], rows),
        "",
    ]
