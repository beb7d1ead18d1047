"""Rows of pictures that the demo model draws with and without depth guidance, and what is seen in them.

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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from .depth_figures import warp

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

    from inner_guidance.demo.depth_judge import DepthJudge
    from inner_guidance.demo.recogniser import Recogniser
    from inner_guidance.depth_head.metrics import DepthMetrics
    from inner_guidance.depth_head.prior import DepthPrior
    from inner_guidance.guidance.host.frozen_unet import FrozenUNet

FIRST_SCENE, FIRST_REFERENCE = 1_100_000, 1_120_000
BATCH = 10
BENT = 0.05
SHEET_PICTURES, SHEET_SIZE = 16, 128
NONE = "none"

# Where the head reads finished pictures, and the levels at which the prior judges what it reads.
READ_AT, READ_NOISES = 100.0, 2
PRIOR_TIMESTEPS = (200, 500)


@dataclass(frozen=True)
class Row:
    """settings: inputs of the node that are not its defaults; None is without guidance.

    constants: of guidance/depth_aware.py, where the row has others. step: ROBUST_STEP in the row, likewise;
    the strengths are scaled to that.
    """

    settings: Mapping[str, Any] | None
    constants: Mapping[str, Any] = field(default_factory=dict)
    step: float | None = None


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


@dataclass(frozen=True)
class Seen:
    """What is known of N pictures."""

    depth: Tensor
    """The judge's, (N, 1, 32, 32)."""
    surfaces: Tensor
    """The judge's, (N, surfaces, 32, 32), log-odds."""
    features: Tensor
    """The recogniser's, (N, C)."""
    objects: Tensor
    """The recogniser's probabilities, (N, kinds of solids)."""
    head: Tensor
    """The strong branch's depth from the pictures' latents, (N, 1, 32, 32)."""
    consistency: Tensor
    """|d_S - d_W| there, (N,)."""
    prior: Tensor
    """The depth prior's loss of d_S, (N,)."""


class Bench:
    """The demo model with what guides it and what judges it, and the work folder."""

    def __init__(self, work: Path) -> None:
        from inner_guidance.demo import model as demo
        from inner_guidance.demo.depth_judge import DEPTH_JUDGE_FILE, DepthJudge
        from inner_guidance.demo.recogniser import RECOGNISER_FILE, Recogniser
        from inner_guidance.depth_head.head_files import load_depth_head
        from inner_guidance.depth_head.prior_files import load_depth_prior
        from inner_guidance.guidance.host.depth_heads import HostedDepthHead
        from inner_guidance.guidance.host.depth_priors import make_unet
        from inner_guidance.nodes.depth_aware_guidance import InnerDepthAwareGuidance

        self.work = work
        self.checksums = {
            path.stem: hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            for path in demo.WEIGHTS.glob("*.safetensors")
        }
        self.scene_folder = work / f"scenes-{self.checksums['autoencoder']}"
        self.node = InnerDepthAwareGuidance
        self.model: ModelPatcher = demo.load_model(demo.WEIGHTS / demo.UNET_FILE)
        self.clip: CLIP = demo.load_clip(demo.WEIGHTS / demo.TEXT_FILE)
        self.vae: VAE = demo.load_vae(demo.WEIGHTS / demo.AUTOENCODER_FILE)
        self.head = HostedDepthHead.of(load_depth_head(demo.WEIGHTS / demo.DEPTH_HEAD_FILE))
        self.prior: DepthPrior = load_depth_prior(demo.WEIGHTS / demo.DEPTH_PRIOR_FILE, make_unet)
        self.judge: DepthJudge = DepthJudge().eval()
        self.judge.load_state_dict(demo.read_weights(demo.WEIGHTS / DEPTH_JUDGE_FILE))
        self.recogniser: Recogniser = Recogniser().eval()
        self.recogniser.load_state_dict(demo.read_weights(demo.WEIGHTS / RECOGNISER_FILE))

    def scenes(self, first: int) -> dict[str, Tensor]:
        """BATCH held-out scenes from a seed on.

        renders, and pictures, which are these after the autoencoder, (B, 256, 256, 3) in uint8; latents;
        depth (B, 256, 256), relative inverse; surface (B, 256, 256).
        """
        from inner_guidance.demo.depth_judge import relative_inverse_depth
        from inner_guidance.demo.renders import to_uint8
        from inner_guidance.demo.world import render, sample_scene

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
        import comfy.sample

        path = self.folder(group, name) / f"{first}.safetensors"
        if path.exists():
            return
        latent = torch.zeros(BATCH, 4, 32, 32)
        positive = self.prompts(group, first)
        with self.guided(group.rows[name], first) as model:
            started = time.perf_counter()
            latents = comfy.sample.sample(
                model,
                comfy.sample.prepare_noise(latent, first),
                group.steps,
                group.cfg,
                group.sampler,
                group.scheduler,
                positive,
                self.encoded([""]),
                latent,
                seed=first,
                disable_pbar=True,
            ).cpu()
            seconds = time.perf_counter() - started
        save(
            path, pictures=decoded(self.vae, latents), latents=latents, seconds=torch.tensor(seconds / BATCH)
        )

    def prompts(self, group: Group, first: int) -> list[list[Any]]:
        """The positive conditioning of a batch."""
        from inner_guidance.demo.world import sample_scene

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
        (model,) = self.node.execute(self.model, self.head, depth_prior=self.prior, **inputs).result
        with contextlib.ExitStack() as stack:
            for name, value in row.constants.items():
                stack.enter_context(mock.patch.object(depth_aware, name, value))
            yield model

    def inputs(self, row: Row) -> dict[str, Any]:
        """What the node is set to."""
        defaults = {
            given.id: given.default
            for given in self.node.define_schema().inputs
            if getattr(given, "default", None) is not None
        }
        return defaults | dict(row.settings)

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
            names = ("PAPER_WEIGHT", "ROBUST_STEP", "TARGET_SCALE", "PRIOR_LEVELS")
            constants = {name: getattr(depth_aware, name) for name in names} | dict(row.constants)
            constants["ROBUST_STEP"] = row.step or constants["ROBUST_STEP"]
            if inputs["mode"] == "paper":
                del constants["ROBUST_STEP"]
            made_by |= {"inputs": inputs, "constants": constants, "head": self.checksums["depth_head"]}
            if inputs["prior_scale"] != 0:
                made_by["prior"] = self.checksums["depth_prior"]
        digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:12]
        plain = "".join(letter if letter.isalnum() else "-" for letter in name)
        return self.work / f"{plain}-{digest}"

    def seen(self, group: Group, name: str) -> tuple[Seen, float] | None:
        """What is known of a row's pictures, and the seconds that each took; None while some are missing."""
        folder = self.folder(group, name)
        paths = [folder / f"{first}.safetensors" for first in range(0, group.samples, BATCH)]
        if not all(path.exists() for path in paths):
            return None
        batches = [load_file(path) for path in paths]
        pictures = torch.cat([batch["pictures"] for batch in batches])[: group.samples]
        latents = torch.cat([batch["latents"] for batch in batches])[: group.samples]
        seconds = statistics.median(float(batch["seconds"]) for batch in batches)
        return self.look(folder, pictures, lambda: latents), seconds

    def look(self, folder: Path, pictures: Tensor, latents: Callable[[], Tensor]) -> Seen:
        """Judge pictures; what is seen lies in the folder afterwards."""
        from inner_guidance.demo.depth_judge import judge
        from inner_guidance.demo.recogniser import recognise

        names = ("depth_judge", "recogniser", "unet", "depth_head", "depth_prior")
        judges = "".join(self.checksums[name][:4] for name in names)
        path = folder / f"seen-{len(pictures)}-{judges}.safetensors"
        if not path.exists():
            judged, recognised = judge(self.judge, pictures), recognise(self.recogniser, pictures)
            head, consistency, prior = self.read(latents())
            save(
                path,
                depth=judged.depth,
                surfaces=judged.surfaces,
                features=recognised.features,
                objects=recognised.logits["objects"].sigmoid(),
                head=head,
                consistency=consistency,
                prior=prior,
            )
        return Seen(**load_file(path))

    def read(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the head and the prior make of finished pictures: head, consistency and prior of Seen."""
        from inner_guidance.depth_head.prior import schedule, to_prior
        from inner_guidance.guidance.depth_aware import prior_loss
        from inner_guidance.guidance.host.frozen_unet import with_frozen_unet

        network = self.head.head.network

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=torch.Generator().manual_seed(0))

        def work(unet: FrozenUNet) -> tuple[Tensor, Tensor]:
            strong, difference = [], []
            for batch in latents.split(BATCH):
                at = torch.full((len(batch),), READ_AT, device=unet.device)
                maps = []
                for one in noise(READ_NOISES, *batch.shape[1:]):
                    features = unet.features(list(network.taps), batch, one.expand_as(batch), at)
                    maps.append(
                        torch.stack(network.branches(features, at, batch.shape[-2:], ("strong", "weak")))
                    )
                first, second = torch.stack(maps).mean(0).cpu()
                strong.append(first)
                difference.append((first - second).abs().mean((1, 2, 3)))
            return torch.cat(strong), torch.cat(difference)

        head, consistency = with_frozen_unet(
            self.model, self.encoded([""]), (BATCH, *latents.shape[1:]), work, [self.head.patcher]
        )
        size, abar = self.prior.size, schedule()
        losses = []
        for batch in head.split(BATCH):
            eta = noise(1, 1, size, size).expand(len(batch), -1, -1, -1)
            of_levels = [
                prior_loss(
                    to_prior(batch, size),
                    eta,
                    float(abar[t]),
                    lambda noised, t=t: self.prior.unet(noised, torch.full((len(noised),), float(t))),
                )
                for t in PRIOR_TIMESTEPS
            ]
            losses.append(torch.stack(of_levels).mean(0))
        return head, consistency, torch.cat(losses)

    def reference(self, count: int) -> Seen:
        """Renders of other scenes after the autoencoder: what every Frechet distance is measured to."""
        of = partial(self.of_scenes, FIRST_REFERENCE, count)
        return self.look(self.scene_folder / "reference", of("pictures"), lambda: of("latents"))

    def renders(self, count: int) -> dict[str, Seen]:
        """The scenes themselves after the autoencoder, in rows of the tables."""
        of = partial(self.of_scenes, FIRST_SCENE, count)
        bent = warp(of("pictures"), BENT, seed=0)

        def encoded() -> Tensor:
            return torch.cat([self.vae.encode(batch.float() / 255).cpu() for batch in bent.split(BATCH)])

        return {
            "renders": self.look(self.scene_folder / "renders", of("pictures"), lambda: of("latents")),
            "renders, bent": self.look(self.scene_folder / f"bent-{BENT:g}", bent, encoded),
        }

    def truth(self, count: int) -> Tensor:
        """Depth of the scenes, (N, 1, 32, 32)."""
        depth = self.of_scenes(FIRST_SCENE, count, "depth").float()
        return F.interpolate(depth[:, None], (32, 32), mode="area")

    def judge_accuracy(self, count: int) -> dict[str, DepthMetrics]:
        """The judge's own figures."""
        from inner_guidance.demo.depth_judge import judge
        from inner_guidance.demo.world import FAR, NEAR
        from inner_guidance.depth_head.metrics import DepthRange, measure

        truth = self.truth(count)
        return {
            title: measure(
                judge(self.judge, self.of_scenes(FIRST_SCENE, count, name)).depth,
                truth,
                DepthRange(NEAR, FAR),
            )
            for title, name in (("renders", "renders"), ("renders after the autoencoder", "pictures"))
        }

    def shown(self, count: int) -> tuple[Tensor, Tensor]:
        """Of the scenes: which kinds of solids are visible (N, kinds), and the kind of the largest (N,)."""
        from inner_guidance.demo.recogniser import main_pair, scene_labels
        from inner_guidance.demo.world import sample_scene

        surfaces = self.of_scenes(FIRST_SCENE, count, "surface")
        scenes = [(sample_scene(FIRST_SCENE + i), surface) for i, surface in enumerate(surfaces)]
        present = torch.stack([scene_labels(*scene)["objects"] for scene in scenes])
        return present, torch.tensor([main_pair(*scene) for scene in scenes])

    def write_sheets(self, name: str, group: Group) -> None:
        """The first pictures of each row that is complete, and the judge's depth of them, a row below it."""
        from inner_guidance.demo.sheet import save_sheet

        tiles = []
        for row in group.rows:
            if (known := self.seen(group, row)) is None:
                continue
            batches = [
                load_file(self.folder(group, row) / f"{first}.safetensors")["pictures"]
                for first in range(0, min(SHEET_PICTURES, group.samples), BATCH)
            ]
            pictures = torch.cat(batches)[:SHEET_PICTURES].movedim(-1, 1).float() / 255
            depth = known[0].depth[: len(pictures)].expand(-1, 3, -1, -1)
            for kind in (pictures, depth):
                resized = F.interpolate(kind, (SHEET_SIZE, SHEET_SIZE), mode="bilinear", antialias=True)
                tiles.append(resized.movedim(1, -1))
        if tiles:
            save_sheet(torch.cat(tiles), self.work / f"{name}.png", columns=len(tiles[0]))


def decoded(vae: VAE, latents: Tensor) -> Tensor:
    """Pictures (N, 256, 256, 3) in uint8."""
    return (vae.decode(latents).cpu() * 255).round().clamp(0, 255).to(torch.uint8)


def save(path: Path, **tensors: Tensor) -> None:
    """Writes a file of the work folder; an interruption leaves none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{time.monotonic_ns()}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished)
    unfinished.replace(path)
