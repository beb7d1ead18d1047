"""Pictures that are led to the depth of the scenes that their prompts describe, and how well they follow.

A depth network and a recogniser judge the pictures; both were trained on renders alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import comfy.sample
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from ..demo import model as demo
from ..demo.depth_judge import DEPTH_JUDGE_FILE, judge
from ..demo.ray_casting import Render, render
from ..demo.recogniser import recognise, shown_solids
from ..demo.scenes import FAR, NEAR, Scene, sample_scene
from ..demo.sheet import conditioning, decode
from ..depth_head.head_files import load_depth_head
from ..depth_head.metrics import DepthRange
from ..host.depth.heads import HostedDepthHead
from ..nodes.depth_aware_guidance import InnerDepthAwareGuidance
from .dag_figures import abs_rel_after_alignment, fidelity
from .dag_rows import NONE
from .judges import load_judges
from .kept_files import checksum, save
from .node_inputs import with_defaults
from .paired_bootstrap import LEVEL, Bootstrapped, bootstrap, cell, mean, resamples

BATCH = 16
STEPS, CFG, SAMPLER = 12, 3.0, "dpmpp_2m"
COLUMNS = ("AbsRel to the target", "main object", "objects found", "CPU s/image")


class Row(NamedTuple):
    """A head's file, None without guidance, and inputs of the node that are not its defaults."""

    head: str | None
    settings: Mapping[str, float] = {}
    steps: int = STEPS


class Targets(NamedTuple):
    """Scenes of consecutive seeds, which are also those of the noise, and their renders."""

    seeds: range
    scenes: Sequence[Scene]
    seen: Sequence[Render]


class Drawn(NamedTuple):
    """Pictures (N, 256, 256, 3) in uint8, and the seconds that the sampling of one took."""

    pictures: Tensor
    seconds: float


def targets_of(seeds: range) -> Targets:
    """The scenes of some seeds, a multiple of BATCH."""
    scenes = [sample_scene(seed) for seed in seeds]
    return Targets(seeds, scenes, [render(scene) for scene in tqdm(scenes, desc="rendering")])


def kept(work: Path, family: str, row: Row, targets: Targets) -> Drawn:
    """`draw`, or its earlier result with the same weights and settings."""
    files = (demo.FAMILIES[family].model, *([row.head] if row.head else []))
    made_by = [
        *(checksum(demo.WEIGHTS / file) for file in files),
        *(f"{name}={value:g}" for name, value in row.settings.items()),
        f"{targets.seeds} {row.steps}",
    ]
    path = work / f"{hashlib.sha256(' '.join(made_by).encode()).hexdigest()[:12]}.safetensors"
    if not path.exists():
        drawn = draw(family, row, targets)
        save(path, pictures=drawn.pictures, seconds=torch.tensor(drawn.seconds))
    found = load_file(path)
    return Drawn(found["pictures"], float(found["seconds"]))


def draw(family: str, row: Row, targets: Targets) -> Drawn:
    """The pictures of a row, one of each scene."""
    model, clip, vae = demo.load_all(demo.WEIGHTS, family)
    pictures, seconds = [], 0.0
    for first in range(0, len(targets.seeds), BATCH):
        guided = model
        if row.head is not None:
            depths = torch.stack([relative_depth(one) for one in targets.seen[first : first + BATCH]])
            inputs = with_defaults(
                InnerDepthAwareGuidance,
                model=model,
                depth_head=HostedDepthHead.of(load_depth_head(demo.WEIGHTS / row.head)),
                target_depth=depths[..., None].expand(-1, -1, -1, 3),
                **row.settings,
            )
            (guided,) = InnerDepthAwareGuidance.execute(**inputs).result
        latent = torch.zeros(BATCH, 4, 32, 32)
        seed = targets.seeds[first]
        prompts = conditioning(clip, [scene.caption for scene in targets.scenes[first : first + BATCH]])
        started = time.process_time()
        samples = comfy.sample.sample(
            guided,
            comfy.sample.prepare_noise(latent, seed),
            row.steps,
            CFG,
            SAMPLER,
            demo.FAMILIES[family].scheduler,
            prompts,
            conditioning(clip, [""]),
            latent,
            seed=seed,
            disable_pbar=True,
        )
        seconds += time.process_time() - started
        pictures.append(decode(vae, samples.cpu()))
    return Drawn(torch.cat(pictures), seconds / len(targets.seeds))


def relative_depth(seen: Render) -> Tensor:
    """(H, W), near = 1."""
    return DepthRange(NEAR, FAR).relative(seen.depth)


def cells(drawn: Mapping[str, Drawn], targets: Targets) -> dict[str, list[str]]:
    """The cells of COLUMNS by row; all but NONE with their change from it, paired by seed."""
    depth_judge, recogniser = load_judges()
    present, main_objects = shown_solids(targets.scenes, [one.surface for one in targets.seen])
    relative = torch.stack([relative_depth(one) for one in targets.seen])[:, None]

    def figures(pictures: Tensor) -> list[Bootstrapped]:
        depth = judge(depth_judge, pictures).depth
        truth = F.interpolate(relative, depth.shape[-2:], mode="area")
        objects = recognise(recogniser, pictures).logits["objects"].sigmoid()
        values = (
            abs_rel_after_alignment(depth, truth, NEAR, FAR),
            *fidelity(objects, present, main_objects),
        )
        return [bootstrap(mean, of_picture, resamples(len(targets.seeds))) for of_picture in values]

    measured = {name: figures(one.pictures) for name, one in drawn.items()}
    plain = drawn[NONE].seconds
    return {
        name: [
            *(
                cell(found, None if name == NONE else baseline)
                for found, baseline in zip(of_row, measured[NONE], strict=True)
            ),
            f"{drawn[name].seconds:.2f} ({drawn[name].seconds / plain:.2f})",
        ]
        for name, of_row in measured.items()
    }


def checksums(family: str) -> str:
    """How the SHA-256 of the files begins that draw, lead and judge."""
    used = demo.FAMILIES[family]
    files = (used.model, used.depth_head, demo.LATENT_HEAD_FILE, DEPTH_JUDGE_FILE)
    return ", ".join(f"{Path(file).stem} begins {checksum(demo.WEIGHTS / file)}" for file in files)


def legend(pictures: int, family: str) -> list[str]:
    """The lines that say how the rows were drawn and what their figures are."""
    return [
        f"{pictures} pictures a row, {STEPS} steps of {SAMPLER}, {demo.FAMILIES[family].scheduler}, CFG "
        f"{CFG:g}, prompts that describe the scenes whose depth is the target. In brackets: the change from "
        f"the row without guidance and its {LEVEL:.0%} interval, from a bootstrap over the seeds, bold where "
        "it excludes 0; behind the CPU seconds of a picture: their ratio to that row's.",
        "",
        "- AbsRel to the target: the depth judge's depth against the target, after scale and shift.",
        "- main object, objects found: of those that the prompt names, by the recogniser.",
    ]
