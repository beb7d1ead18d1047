"""What is seen in the pictures of guided_pictures.py, by networks that the guidance does not know.

What was found is kept beside the pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from .depth_figures import warp
from .guided_pictures import BATCH, FIRST_REFERENCE, FIRST_SCENE, Drawings, Group, read_prior, save

if TYPE_CHECKING:
    from inner_guidance.demo.depth_judge import DepthJudge
    from inner_guidance.demo.recogniser import Recogniser
    from inner_guidance.depth_head.metrics import DepthMetrics
    from inner_guidance.host.sampling.frozen_unet import FrozenUNet

BENT = 0.05
SHEET_PICTURES, SHEET_SIZE = 16, 128

# Where the head reads finished pictures, and the levels at which the prior judges what it reads.
READ_AT, READ_NOISES = 100.0, 2
PRIOR_TIMESTEPS = (200, 500)


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


class Judges:
    """A depth network and a recogniser that were trained on renders alone, and what head and prior see."""

    def __init__(self, drawings: Drawings) -> None:
        from inner_guidance.demo import model as demo
        from inner_guidance.demo.depth_judge import DEPTH_JUDGE_FILE, DepthJudge
        from inner_guidance.demo.recogniser import RECOGNISER_FILE, Recogniser

        self.drawings = drawings
        self.prior = read_prior(drawings.prior_file)
        self.judge: DepthJudge = DepthJudge().eval()
        self.judge.load_state_dict(demo.read_weights(demo.WEIGHTS / DEPTH_JUDGE_FILE))
        self.recogniser: Recogniser = Recogniser().eval()
        self.recogniser.load_state_dict(demo.read_weights(demo.WEIGHTS / RECOGNISER_FILE))

    def seen(self, group: Group, name: str) -> Seen | None:
        """What is known of a row's pictures; None while some are missing."""
        batches = self.drawings.batches(group, name)
        if batches is None:
            return None
        pictures, latents = (
            torch.cat([batch[kind] for batch in batches])[: group.samples] for kind in ("pictures", "latents")
        )
        return self.look(self.drawings.folder(group, name), pictures, lambda: latents)

    def look(self, folder: Path, pictures: Tensor, latents: Callable[[], Tensor]) -> Seen:
        """Judge pictures; what is seen lies in the folder afterwards."""
        from inner_guidance.demo.depth_judge import judge
        from inner_guidance.demo.recogniser import recognise

        names = ("depth_judge", "recogniser", "unet", "depth_head", "depth_prior")
        judges = "".join(self.drawings.checksums[name][:4] for name in names)
        path = folder / f"seen-{len(pictures)}-{judges}.safetensors"
        if not path.exists():
            judged, recognised = judge(self.judge, pictures), recognise(self.recogniser, pictures)
            head, consistency = self.read(latents())
            save(
                path,
                depth=judged.depth,
                surfaces=judged.surfaces,
                features=recognised.features,
                objects=recognised.logits["objects"].sigmoid(),
                head=head,
                consistency=consistency,
                prior=self.prior_losses(head),
            )
        return Seen(**load_file(path))

    def read(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """What the head reads in finished pictures: head and consistency of Seen."""
        from inner_guidance.host.sampling.frozen_unet import with_frozen_unet

        hosted = self.drawings.head
        network = hosted.head.network

        def work(unet: FrozenUNet) -> tuple[Tensor, Tensor]:
            strong, difference = [], []
            for batch in latents.split(BATCH):
                at = torch.full((len(batch),), READ_AT, device=unet.device)
                maps = []
                for one in seeded_noise(READ_NOISES, *batch.shape[1:]):
                    features = unet.features(list(network.taps), batch, one.expand_as(batch), at)
                    maps.append(
                        torch.stack(network.branches(features, at, batch.shape[-2:], ("strong", "weak")))
                    )
                first, second = torch.stack(maps).mean(0).cpu()
                strong.append(first)
                difference.append((first - second).abs().mean((1, 2, 3)))
            return torch.cat(strong), torch.cat(difference)

        conditioning, shape = self.drawings.encoded([""]), (BATCH, *latents.shape[1:])
        return with_frozen_unet(self.drawings.model, conditioning, shape, work, [hosted.patcher])

    def prior_losses(self, depth: Tensor) -> Tensor:
        """L_dp of depth maps (N, 1, h, w), (N,): the mean over PRIOR_TIMESTEPS."""
        from inner_guidance.depth_head.prior import schedule, to_prior
        from inner_guidance.guidance.depth_aware import prior_loss

        size, abar = self.prior.size, schedule()

        def eps_phi(t: int, noised: Tensor) -> Tensor:
            return self.prior.unet(noised, torch.full((len(noised),), float(t)))

        losses = []
        for batch in depth.split(BATCH):
            eta = seeded_noise(1, 1, size, size).expand(len(batch), -1, -1, -1)
            of_levels = [
                prior_loss(to_prior(batch, size), eta, float(abar[t]), partial(eps_phi, t))
                for t in PRIOR_TIMESTEPS
            ]
            losses.append(torch.stack(of_levels).mean(0))
        return torch.cat(losses)

    def reference(self, count: int) -> Seen:
        """Renders of other scenes after the autoencoder: what every Frechet distance is measured to."""
        of = partial(self.drawings.of_scenes, FIRST_REFERENCE, count)
        return self.look(self.drawings.scene_folder / "reference", of("pictures"), lambda: of("latents"))

    def renders(self, count: int) -> dict[str, Seen]:
        """The scenes themselves after the autoencoder, in rows of the tables."""
        of = partial(self.drawings.of_scenes, FIRST_SCENE, count)
        bent = warp(of("pictures"), BENT, seed=0)

        def encoded() -> Tensor:
            return torch.cat(
                [self.drawings.vae.encode(batch.float() / 255).cpu() for batch in bent.split(BATCH)]
            )

        return {
            "renders": self.look(
                self.drawings.scene_folder / "renders", of("pictures"), lambda: of("latents")
            ),
            "renders, bent": self.look(self.drawings.scene_folder / f"bent-{BENT:g}", bent, encoded),
        }

    def truth(self, count: int) -> Tensor:
        """Depth of the scenes, (N, 1, 32, 32)."""
        depth = self.drawings.of_scenes(FIRST_SCENE, count, "depth").float()
        return F.interpolate(depth[:, None], (32, 32), mode="area")

    def judge_accuracy(self, count: int) -> dict[str, DepthMetrics]:
        """The judge's own figures."""
        from inner_guidance.demo.depth_judge import judge
        from inner_guidance.demo.scenes import FAR, NEAR
        from inner_guidance.depth_head.metrics import DepthRange, measure

        truth = self.truth(count)
        return {
            title: measure(
                judge(self.judge, self.drawings.of_scenes(FIRST_SCENE, count, name)).depth,
                truth,
                DepthRange(NEAR, FAR),
            )
            for title, name in (("renders", "renders"), ("renders after the autoencoder", "pictures"))
        }

    def shown(self, count: int) -> tuple[Tensor, Tensor]:
        """Of the scenes: which kinds of solids are visible (N, kinds), and the kind of the largest (N,)."""
        from inner_guidance.demo.recogniser import main_pair, scene_labels
        from inner_guidance.demo.scenes import sample_scene

        surfaces = self.drawings.of_scenes(FIRST_SCENE, count, "surface")
        scenes = [(sample_scene(FIRST_SCENE + i), surface) for i, surface in enumerate(surfaces)]
        present = torch.stack([scene_labels(*scene)["objects"] for scene in scenes])
        return present, torch.tensor([main_pair(*scene) for scene in scenes])

    def write_sheets(self, name: str, group: Group) -> None:
        """The first pictures of each row that is complete, and the judge's depth of them, a row below it."""
        from inner_guidance.demo.sheet import save_sheet

        tiles = []
        for row in group.rows:
            known, batches = self.seen(group, row), self.drawings.batches(group, row)
            if known is None or batches is None:
                continue
            pictures = torch.cat([batch["pictures"] for batch in batches])
            pictures = pictures[:SHEET_PICTURES].movedim(-1, 1).float() / 255
            depth = known.depth[: len(pictures)].expand(-1, 3, -1, -1)
            for kind in (pictures, depth):
                resized = F.interpolate(kind, (SHEET_SIZE, SHEET_SIZE), mode="bilinear", antialias=True)
                tiles.append(resized.movedim(1, -1))
        if tiles:
            save_sheet(torch.cat(tiles), self.drawings.work / f"{name}.png", columns=len(tiles[0]))


def seeded_noise(*shape: int) -> Tensor:
    """The same noise for all pictures."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
