"""Runs the templates for Stable Diffusion 1.5 on models of real size with random weights: `make full-size`.

    python -m tools.full_size [--sdxl] [--only NAME ...] [--half] [--options="OPTIONS OF ComfyUI"]

The real server runs each template in few steps. What the templates load is in .cache/full-size/models:
benchmarks/random_checkpoints.py writes models, and the first two templates train the depth head and the prior
of the others, on three pictures. template_runs.py says what is checked.
"""

from __future__ import annotations

import argparse
import copy
import resource
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from .host_server import ON_THE_CPU, HostServer, HostServerError, Prompt
from .setup_host import ROOT, SetupError, host_folder
from .template_runs import TemplateRun, TemplateRunError, run_with_twins, shortened, template

FOLDER = ROOT / ".cache" / "full-size"
# The kernel that ComfyUI takes by itself on GPUs; on CPUs it takes one that is slower and needs 4 GB more.
OPTIONS = (*ON_THE_CPU, "--use-pytorch-cross-attention")
TRAIN_HEAD = "22 Train a depth head on SD 1.5 with Depth Anything 3 labels"
TRAIN_PRIOR = "23 Train a depth prior with Depth Anything 3 labels"
# The folders in which trainings save, where the other templates find it.
SAVED_IN = {TRAIN_HEAD: "depth_heads", TRAIN_PRIOR: "depth_priors"}
SD15 = (
    TRAIN_HEAD,
    TRAIN_PRIOR,
    "13 SAG on SD 1.5",
    "15 SAG + hires fix",
    "18 Depth of an image from SD 1.5",
    "17 Watch depth form",
    "16 See what SD 1.5 sees",
    "20 Depth-aware guidance on SD 1.5",
    "19 Depth-locked restyle",
    "21 DAG + SAG",
)
SDXL = ("14 SAG on SDXL",)
SHORT: dict[str, dict[str, Any]] = {
    "KSampler": {"steps": 2},
    "InnerTrainDepthHead": {"steps": 2, "batch_size": 1},
    "InnerTrainDepthPrior": {"steps": 20, "batch_size": 2},
    "InnerDepthEstimate": {"ensemble": 1},
    "InnerLoadDepthHead": {"name": "sd15_depth_00001_.safetensors"},  # the trained one, not the public one
}
# One step of SAG tells; DAG has a window for each loss, and a film of depth is made of steps.
SHORTER = {name: {"KSampler": {"steps": 1}} for name in ("13 SAG on SD 1.5", "15 SAG + hires fix", *SDXL)}
SIZES = ("width", "height", "largest_size", "resolution")
PICTURES = (
    "04 Demo - Depth of an image",
    "01 Demo - Self-Attention Guidance",
    "09 Demo - Train a depth head",
)


def main() -> None:
    """Run the templates, print a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sdxl", action="store_true", help="SDXL instead of Stable Diffusion 1.5")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these templates")
    parser.add_argument("--half", action="store_true", help="half the width and height, for slow machines")
    parser.add_argument("--options", default=shlex.join(OPTIONS), help="how to start ComfyUI")
    options = parser.parse_args()
    names = options.only or (SDXL if options.sdxl else SD15)
    for trained in SAVED_IN.keys() & names:
        shutil.rmtree(FOLDER / "models" / SAVED_IN[trained], ignore_errors=True)
    started, failed = time.monotonic(), 0
    print("| template | seconds | pictures | what happened |\n|---|---|---|---|", flush=True)
    with HostServer(
        host_folder(), ROOT, FOLDER / "server.log", options=shlex.split(options.options)
    ) as server:
        furnish(Path(server.base.name))
        for name in names:
            begun = time.monotonic()
            try:
                prompt = shortened(template(name), SHORT | SHORTER.get(name, {}))
                ran = run_with_twins(server, halved(prompt) if options.half else prompt)
                ran.require_sound()
                if name in SAVED_IN:
                    saved = Path(server.base.name, "models", SAVED_IN[name])
                    shutil.copytree(saved, FOLDER / "models" / saved.name)
                pictures, said = sum(map(len, ran.pictures.values())), what_happened(ran)
            except (HostServerError, TemplateRunError) as error:
                pictures, said = 0, f"FAILED: {error}"
                failed += 1
            print(f"| {name} | {time.monotonic() - begun:.0f} | {pictures} | {said} |", flush=True)
    took = f"in {(time.monotonic() - started) / 60:.0f} minutes, {peak_gigabytes():.1f} GB of memory"
    if failed:
        sys.exit(f"{failed} of {len(names)} templates failed {took}; the server's log is in {FOLDER}.")
    print(f"{len(names)} of {len(names)} templates ran at real size {took}.")


def furnish(base: Path) -> None:
    """Give a server the models and the pictures that the templates name."""
    for path in (FOLDER / "models").glob("*/*.safetensors"):
        link = base / "models" / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    folder = base / "input" / "depth_training"
    folder.mkdir(parents=True)
    for name in PICTURES:
        shutil.copy(ROOT / "workflows" / f"{name}.jpg", folder)
    Image.open(ROOT / "workflows" / f"{PICTURES[0]}.jpg").save(base / "input" / "example.png")


def halved(prompt: Prompt) -> Prompt:
    """The prompt at half its sizes, in multiples of 14 for Depth Anything and of 8 for the others."""
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        node["inputs"] |= {name: node["inputs"][name] // 2 for name in SIZES if name in node["inputs"]}
    return prompt


def what_happened(run: TemplateRun) -> str:
    """In words, for each pair of twins."""
    said = [
        f"guidance: {change:.1%} of the latent's deviation" if twins.guided else "recorded: same latent"
        for twins, change in zip(run.twins, run.changes, strict=True)
    ]
    return "; ".join(said) or "no sampler"


def peak_gigabytes() -> float:
    """The most memory that a process started by this one has had."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"make full-size: {error}")
    except KeyboardInterrupt:
        sys.exit("make full-size: interrupted; the server is stopped.")
