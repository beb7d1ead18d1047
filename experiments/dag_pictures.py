"""The pictures of the depth guidance experiment: the demo model draws them, with and without guidance.

The work folder holds them in files of BATCH pictures. Existing files are not made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import load_file
from torch import Tensor

from ..demo import model as demo
from ..demo.ray_casting import render
from ..demo.renders import to_uint8
from ..demo.scenes import FAR, NEAR, sample_scene
from ..demo.sheet import conditioning, decode
from ..depth_head.head_files import load_depth_head
from ..depth_head.metrics import DepthRange
from ..depth_head.prior import DepthPrior
from ..depth_head.prior_files import load_depth_prior
from ..guidance import depth_aware
from ..host.depth.heads import HostedDepthHead
from ..host.depth.priors import make_unet
from ..host.steering import dag_gradient, dag_latent_step, dag_losses
from ..host.steering.dag_losses import DepthAwareSettings, Networks
from ..nodes.depth_aware_guidance import InnerDepthAwareGuidance
from .dag_rows import Group, Row, Terms
from .kept_files import checksum, save
from .node_inputs import with_defaults
from .recurrence import recurrent
from .starting_noise import closest_noise, starting_noises

BATCH = 10
CONSTANTS = (
    "PAPER_WEIGHT",
    "ROBUST_STEP",
    "TARGET_STRETCH",
    "TARGET_WEIGHT",
    "PRIOR_LEVELS",
    "PRIOR_NOISES",
)
"""The constants of guidance/depth_aware.py that change pictures."""


class Drawings:
    """A demo model with its depth head and prior, and the work folder of its pictures.

    weights: a folder whose files, named like those in demo/weights, take their place.
    """

    def __init__(
        self,
        work: Path,
        dtype: torch.dtype = torch.float32,
        family: str = demo.UNET,
        weights: Path = demo.WEIGHTS,
    ) -> None:
        files = demo.FAMILIES[family]
        paths = {
            path.name: path for folder in (demo.WEIGHTS, weights) for path in folder.glob("*.safetensors")
        }
        self.work = work
        self.dtype = dtype
        self.model_name, self.head_name = Path(files.model).stem, Path(files.depth_head).stem
        self.checksums = {path.stem: checksum(path) for path in paths.values()}
        self.scene_folder = work / f"scenes-{self.checksums['autoencoder']}"
        self.model = demo.load_model(paths[files.model])
        self.clip = demo.load_clip(paths[demo.TEXT_FILE])
        self.vae = demo.load_vae(paths[demo.AUTOENCODER_FILE])
        network: Any = self.model.get_model_object("diffusion_model").to(dtype)
        network.dtype = dtype  # by which the host casts the inputs
        self.head, self.latent_head = (
            HostedDepthHead.of(load_depth_head(paths[file]))
            for file in (files.depth_head, demo.LATENT_HEAD_FILE)
        )
        self.prior_file = paths[demo.DEPTH_PRIOR_FILE]

    def scenes(self, first: int) -> dict[str, Tensor]:
        """The held-out scenes of BATCH seeds from `first` on.

        renders and pictures (BATCH, 256, 256, 3) in uint8: before and after the autoencoder; latents (BATCH,
        4, 32, 32); depth (BATCH, 256, 256): relative inverse depth; surface (BATCH, 256, 256).
        """
        path = self.scene_folder / f"{first}.safetensors"
        if not path.exists():
            seen = [render(sample_scene(seed)) for seed in range(first, first + BATCH)]
            latents = self.vae.encode(torch.stack([one.rgb.movedim(0, -1) for one in seen])).cpu()
            save(
                path,
                renders=torch.stack([torch.from_numpy(to_uint8(one.rgb)) for one in seen]),
                pictures=decode(self.vae, latents),
                latents=latents,
                depth=torch.stack([DepthRange(NEAR, FAR).relative(one.depth) for one in seen]).half(),
                surface=torch.stack([one.surface for one in seen]),
            )
        return load_file(path)

    def scene_tensor(self, name: str, seeds: range, count: int) -> Tensor:
        """One of the tensors of `scenes`, of the first `count` seeds."""
        parts = [self.scenes(seed)[name] for seed in seeds[:count:BATCH]]
        return torch.cat(parts)[:count]

    def draw(self, group: Group, name: str, first: int) -> dict[str, Tensor]:
        """BATCH pictures of a row (BATCH, 256, 256, 3) in uint8, their latents, and seconds, drawn once."""
        path = self.path(group, name, first)
        if not path.exists():
            with self.guided_model(group.rows[name], first) as model:
                started = time.process_time()  # the node has measured the prior's levels: once for all runs
                latents = self.sample(model, group, name, first)
                seconds = torch.tensor((time.process_time() - started) / BATCH)
            save(path, pictures=decode(self.vae, latents), latents=latents, seconds=seconds)
        return load_file(path)

    def path(self, group: Group, name: str, first: int) -> Path:
        """The file of BATCH pictures of a row."""
        return self.folder(group, name) / f"{first}.safetensors"

    def sample(self, model: ModelPatcher, group: Group, name: str, first: int) -> Tensor:
        """The latents (BATCH, 4, 32, 32) of BATCH pictures of a row, drawn by its guided model."""
        latent, row = torch.zeros(BATCH, 4, 32, 32), group.rows[name]
        noise = comfy.sample.prepare_noise(latent, first)
        prompts = self.prompts(group, first)
        if row.noises > 1:
            target = self.scenes(first)["depth"].float()[:, None]
            noise = closest_noise(self.model, prompts, self.head, starting_noises(noise, row.noises), target)
        conditions = prompts, conditioning(self.clip, [""]), latent
        given: dict[str, Any] = {"seed": first, "disable_pbar": True}
        if row.repeats == 1:
            schedule = row.steps or group.steps, group.cfg, group.sampler, group.scheduler
            return comfy.sample.sample(model, noise, *schedule, *conditions, **given).cpu()
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, group.scheduler, group.steps)
        custom = group.cfg, recurrent(row.repeats), sigmas
        return comfy.sample.sample_custom(model, noise, *custom, *conditions, **given).cpu()

    def seconds(self, group: Group, name: str) -> float:
        """Median seconds of CPU that sampling a picture of a row took."""
        return statistics.median(
            self.draw(group, name, first)["seconds"].item() for first in group.batches(BATCH)
        )

    def prompts(self, group: Group, first: int) -> list[list[Any]]:
        """The positive conditioning of a batch."""
        if not group.captions:
            return conditioning(self.clip, [""])
        seeds = range(first + group.prompts_after, first + group.prompts_after + BATCH)
        return conditioning(self.clip, [sample_scene(seed).caption for seed in seeds])

    @contextlib.contextmanager
    def guided_model(self, row: Row, first: int) -> Iterator[ModelPatcher]:
        """The model with the guidance of a row, for one batch."""
        if row.settings is None:
            yield self.model
            return
        inputs = with_defaults(InnerDepthAwareGuidance, **row.settings)
        if row.step is not None:
            inputs |= {
                name: row.step / depth_aware.ROBUST_STEP * value
                for name, value in inputs.items()
                if name.endswith("_scale")
            }
        if inputs["target_scale"] != 0:
            depth = self.scenes(first)["depth"].float()
            inputs["target_depth"] = depth[..., None].expand(-1, -1, -1, 3)
        head = self.latent_head if row.latent_head else self.head
        if row.head is not None:
            head = HostedDepthHead.of(load_depth_head(row.head))
        if not row.calibrated:
            head = replace(head, head=replace(head.head, calibration=None))
        with contextlib.ExitStack() as stack:
            for name, value in (*row.constants.items(), *row.losses.items()):
                stack.enter_context(mock.patch.object(depth_aware, name, value))
            if row.terms is not None:
                for step in (dag_gradient, dag_latent_step):
                    stack.enter_context(mock.patch.object(step, "losses", with_terms(row.terms)))
            (model,) = InnerDepthAwareGuidance.execute(
                self.model, head, depth_prior=read_prior(row.prior or self.prior_file), **inputs
            ).result
            yield model

    def folder(self, group: Group, name: str) -> Path:
        """The folder of a row's pictures. Its name contains a digest of everything that determines them."""
        row = group.rows[name]
        made_by: dict[str, Any] = {
            name: getattr(group, name) for name in ("sampler", "scheduler", "cfg", "captions")
        }
        made_by["steps"] = row.steps or group.steps
        if group.prompts_after:
            made_by["prompts_after"] = group.prompts_after
        made_by["weights"] = [
            self.checksums[name] for name in (self.model_name, "text_encoder", "autoencoder")
        ]
        if row.settings is not None:
            inputs = with_defaults(InnerDepthAwareGuidance, **row.settings)
            constants = {name: getattr(depth_aware, name) for name in CONSTANTS} | dict(row.constants)
            constants["ROBUST_STEP"] = row.step or constants["ROBUST_STEP"]
            if inputs["mode"] == "paper":
                del constants["ROBUST_STEP"]
            if inputs["target_scale"] == 0:
                del constants["TARGET_WEIGHT"], inputs["target_end_percent"], inputs["target_blur"]
            head = self.checksums["latent_head" if row.latent_head else self.head_name]
            if row.head is not None:
                head = checksum(row.head)
            made_by |= {"inputs": inputs, "constants": constants, "head": head}
            if inputs["prior_scale"] != 0:
                made_by["prior"] = checksum(row.prior or self.prior_file)
            if not row.calibrated:
                made_by["calibrated"] = False
            if row.terms is not None:
                made_by["terms"] = row.terms.__name__
            if row.losses:
                made_by["losses"] = {name: loss.__name__ for name, loss in row.losses.items()}
        if row.repeats > 1:
            made_by["repeats"] = row.repeats
        if row.noises > 1:
            made_by["noises"] = row.noises, self.checksums[self.head_name]
        if self.dtype != torch.float32:
            made_by["dtype"] = str(self.dtype)
        digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:12]
        plain = "".join(letter if letter.isalnum() else "-" for letter in name)
        return self.work / f"{plain}-{digest}"


def with_terms(changed: Terms) -> Callable[..., Iterator[depth_aware.Term]]:
    """The losses of the guidance with other terms."""

    def losses(
        settings: DepthAwareSettings, networks: Networks, depth: Tensor, time: Tensor, seeded: torch.Generator
    ) -> Iterator[depth_aware.Term]:
        for term in dag_losses.losses(settings, networks, depth, time, seeded):
            yield changed(term, settings, time)

    return losses


def read_prior(path: Path) -> DepthPrior:
    """The depth prior in a file."""
    return load_depth_prior(path, make_unet)
