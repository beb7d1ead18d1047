"""Rows of pictures that the demo model draws with and without depth guidance.

All lies in a work folder, batch by batch; what is there is not made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

    from inner_guidance.depth_head.prior import DepthPrior

FIRST_SCENE, FIRST_REFERENCE = 1_100_000, 1_120_000
BATCH = 10
TURNS = 3
NONE = "none"


@dataclass(frozen=True)
class Row:
    """settings: inputs of the node that are not its defaults; None is without guidance.

    constants: of guidance/depth_aware.py, where the row has others. step: ROBUST_STEP in the row, likewise;
    the strengths are scaled to that. prior: the file of another depth prior than the demo model's.
    losses: functions in the place of those of guidance/depth_aware.py, by name.
    """

    settings: Mapping[str, Any] | None
    constants: Mapping[str, Any] = field(default_factory=dict)
    step: float | None = None
    prior: Path | None = None
    losses: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Rows that are drawn alike, after the row NONE. side: dFID compares maps of side x side.

    captions: of the scenes whose depth is the target, otherwise the prompt is empty.
    """

    title: str
    rows: Mapping[str, Row]
    samples: int
    sampler: str = "dpmpp_2m"
    scheduler: str = "karras"
    steps: int = 20
    cfg: float = 1.0
    captions: bool = False
    side: int = 8


class Drawings:
    """The demo model with what guides it, and the work folder that its pictures lie in."""

    def __init__(self, work: Path) -> None:
        from inner_guidance.demo import model as demo
        from inner_guidance.depth_head.head_files import load_depth_head
        from inner_guidance.host.depth.heads import HostedDepthHead
        from inner_guidance.nodes.depth_aware_guidance import InnerDepthAwareGuidance

        self.work = work
        self.checksums = {path.stem: checksum(path) for path in demo.WEIGHTS.glob("*.safetensors")}
        self.scene_folder = work / f"scenes-{self.checksums['autoencoder']}"
        self.node = InnerDepthAwareGuidance
        self.model: ModelPatcher = demo.load_model(demo.WEIGHTS / demo.UNET_FILE)
        self.clip: CLIP = demo.load_clip(demo.WEIGHTS / demo.TEXT_FILE)
        self.vae: VAE = demo.load_vae(demo.WEIGHTS / demo.AUTOENCODER_FILE)
        self.head = HostedDepthHead.of(load_depth_head(demo.WEIGHTS / demo.DEPTH_HEAD_FILE))
        self.prior_file = demo.WEIGHTS / demo.DEPTH_PRIOR_FILE

    def scenes(self, first: int) -> dict[str, Tensor]:
        """BATCH held-out scenes from a seed on.

        renders, and pictures, which are these after the autoencoder, (B, 256, 256, 3) in uint8; latents;
        depth (B, 256, 256), relative inverse; surface (B, 256, 256).
        """
        from inner_guidance.demo.depth_judge import relative_inverse_depth
        from inner_guidance.demo.ray_casting import render
        from inner_guidance.demo.renders import to_uint8
        from inner_guidance.demo.scenes import sample_scene

        path = self.scene_folder / f"{first}.safetensors"
        if not path.exists():
            seen = [render(sample_scene(seed)) for seed in range(first, first + BATCH)]
            latents = self.vae.encode(torch.stack([one.rgb.movedim(0, -1) for one in seen])).cpu()
            save(
                path,
                renders=torch.stack([torch.from_numpy(to_uint8(one.rgb)) for one in seen]),
                pictures=decoded(self.vae, latents),
                latents=latents,
                depth=torch.stack([relative_inverse_depth(one.depth) for one in seen]).half(),
                surface=torch.stack([one.surface for one in seen]),
            )
        return load_file(path)

    def of_scenes(self, first: int, count: int, name: str) -> Tensor:
        """One of the tensors of `scenes`, of `count` scenes."""
        parts = [self.scenes(seed)[name] for seed in range(first, first + count, BATCH)]
        return torch.cat(parts)[:count]

    def draw(self, group: Group, name: str, first: int) -> None:
        """Draw BATCH pictures of a row, unless they lie in the work folder."""
        path = self.folder(group, name) / f"{first}.safetensors"
        if not path.exists():
            latents = self.sampled(group, name, first)
            save(path, pictures=decoded(self.vae, latents), latents=latents)

    def sampled(self, group: Group, name: str, first: int) -> Tensor:
        """The latents of BATCH pictures of a row."""
        import comfy.sample

        latent = torch.zeros(BATCH, 4, 32, 32)
        with self.guided(group.rows[name], first) as model:
            return comfy.sample.sample(
                model,
                comfy.sample.prepare_noise(latent, first),
                group.steps,
                group.cfg,
                group.sampler,
                group.scheduler,
                self.prompts(group, first),
                self.encoded([""]),
                latent,
                seed=first,
                disable_pbar=True,
            ).cpu()

    def seconds(self, group: Group) -> dict[str, float]:
        """What sampling a picture takes in each row, while nothing else runs: the rows take turns."""
        took: dict[str, list[float]] = {name: [] for name in group.rows}
        for turn in range(TURNS):
            for name in group.rows:
                started = time.perf_counter()
                self.sampled(group, name, turn * BATCH)
                took[name].append((time.perf_counter() - started) / BATCH)
        return {name: statistics.median(of_row) for name, of_row in took.items()}

    def prompts(self, group: Group, first: int) -> list[list[Any]]:
        """The positive conditioning of a batch."""
        from inner_guidance.demo.scenes import sample_scene

        if not group.captions:
            return self.encoded([""])
        return self.encoded([sample_scene(FIRST_SCENE + first + i).caption for i in range(BATCH)])

    def encoded(self, texts: Sequence[str]) -> list[list[Any]]:
        """A conditioning with a prompt for each picture of a batch, or one for all."""
        return [[torch.cat([self.clip.encode_from_tokens(self.clip.tokenize(text)) for text in texts]), {}]]

    @contextlib.contextmanager
    def guided(self, row: Row, first: int) -> Iterator[ModelPatcher]:
        """The model as a row has it, for a batch."""
        from inner_guidance.guidance import depth_aware

        if row.settings is None:
            yield self.model
            return
        inputs = self.inputs(row)
        if row.step is not None:
            inputs |= {
                name: row.step / depth_aware.ROBUST_STEP * value
                for name, value in inputs.items()
                if name.endswith("_scale")
            }
        if inputs["target_scale"] != 0:
            depth = self.scenes(FIRST_SCENE + first)["depth"].float()
            inputs["target_depth"] = depth[..., None].expand(-1, -1, -1, 3)
        (model,) = self.node.execute(
            self.model, self.head, depth_prior=read_prior(row.prior or self.prior_file), **inputs
        ).result
        with contextlib.ExitStack() as stack:
            for name, value in (*row.constants.items(), *row.losses.items()):
                stack.enter_context(mock.patch.object(depth_aware, name, value))
            yield model

    def inputs(self, row: Row) -> dict[str, Any]:
        """What the node is set to."""
        defaults = {
            given.id: default
            for given in self.node.define_schema().inputs
            if (default := getattr(given, "default", None)) is not None
        }
        return defaults | dict(row.settings or {})

    def folder(self, group: Group, name: str) -> Path:
        """Where a row's pictures lie: it is another one for everything that makes other pictures."""
        from inner_guidance.guidance import depth_aware

        row = group.rows[name]
        made_by: dict[str, Any] = {
            name: getattr(group, name) for name in ("sampler", "scheduler", "steps", "cfg", "captions")
        }
        made_by["weights"] = [self.checksums[name] for name in ("unet", "text_encoder", "autoencoder")]
        if row.settings is not None:
            inputs = self.inputs(row)
            names = (
                "PAPER_WEIGHT",
                "ROBUST_STEP",
                "TARGET_STRETCH",
                "TARGET_WEIGHT",
                "PRIOR_LEVELS",
                "PRIOR_NOISES",
            )
            constants = {name: getattr(depth_aware, name) for name in names} | dict(row.constants)
            constants["ROBUST_STEP"] = row.step or constants["ROBUST_STEP"]
            if inputs["mode"] == "paper":
                del constants["ROBUST_STEP"]
            if inputs["target_scale"] == 0:
                del constants["TARGET_WEIGHT"], inputs["target_end_percent"]
            made_by |= {"inputs": inputs, "constants": constants, "head": self.checksums["depth_head"]}
            if inputs["prior_scale"] != 0:
                made_by["prior"] = checksum(row.prior or self.prior_file)
            if row.losses:
                made_by["losses"] = {name: loss.__name__ for name, loss in row.losses.items()}
        digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:12]
        plain = "".join(letter if letter.isalnum() else "-" for letter in name)
        return self.work / f"{plain}-{digest}"

    def batches(self, group: Group, name: str) -> list[dict[str, Tensor]] | None:
        """Of a row: pictures (BATCH, 256, 256, 3) in uint8 and latents; None if one lacks."""
        paths = [
            self.folder(group, name) / f"{first}.safetensors" for first in range(0, group.samples, BATCH)
        ]
        return [load_file(path) for path in paths] if all(path.exists() for path in paths) else None


def literal_prior_loss(d: Tensor, etas: Tensor, abar: float, eps_phi: Callable[[Tensor], Tensor]) -> Tensor:
    """L_dp, in the place of depth_aware.denoised_prior_loss."""
    from inner_guidance.guidance.depth_aware import prior_loss

    return prior_loss(d, etas[0], abar, eps_phi)


def aligned_consistency_loss(d_strong: Tensor, d_weak: Tensor) -> Tensor:
    """L_dc with the strong map fitted to the weak one, in the place of depth_aware.consistency_loss."""
    from inner_guidance.guidance.depth_aware import fit_target, per_image_mean

    return per_image_mean((fit_target(d_strong, d_weak) - d_weak).square())


def read_prior(path: Path) -> DepthPrior:
    """A depth prior's file."""
    from inner_guidance.depth_head.prior_files import load_depth_prior
    from inner_guidance.host.depth.priors import make_unet

    return load_depth_prior(path, make_unet)


def checksum(path: Path) -> str:
    """How the SHA-256 of a file begins."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def decoded(vae: VAE, latents: Tensor) -> Tensor:
    """Pictures (N, 256, 256, 3) in uint8."""
    return (vae.decode(latents).cpu() * 255).round().clamp(0, 255).to(torch.uint8)


def save(path: Path, **tensors: Tensor) -> None:
    """Writes a file of the work folder; an interruption leaves none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{time.monotonic_ns()}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished)
    unfinished.replace(path)
