"""Judges the pictures of dag_pictures.py by independent networks, and by head and prior.

Depth judge and recogniser were trained on renders alone; the guidance does not know them. Their results are
kept next to the pictures, batch by batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ..demo.depth_judge import judge
from ..demo.recogniser import recognise, shown_solids
from ..demo.scenes import FAR, NEAR, sample_scene
from ..demo.sheet import conditioning, save_sheet
from ..depth_head.metrics import DepthMetrics, DepthRange, measure
from ..host.sampling.frozen_model import FrozenModel, with_frozen_model
from .dag_figures import warp
from .dag_pictures import BATCH, Drawings, read_prior
from .dag_rows import Group
from .judges import judge_files, load_judges
from .kept_files import checksum, save
from .prior_losses import literal_loss
from .seeds import REFERENCES

BENT = 0.05
SHEET_PICTURES, SHEET_SIZE = 16, 128

READ_AT, READ_NOISES = 100.0, 2
"""Timestep and number of noises at which the head reads finished pictures."""
PRIOR_TIMESTEPS = (200, 500)
"""Timesteps of the prior's loss."""


@dataclass(frozen=True)
class Seen:
    """The outputs of the networks for N pictures."""

    depth: Tensor
    """(N, 1, 32, 32), the judge's."""
    surfaces: Tensor
    """(N, surfaces, 32, 32), the judge's log-odds."""
    features: Tensor
    """(N, C), the recogniser's."""
    objects: Tensor
    """(N, kinds of solids), the recogniser's probabilities."""
    head: Tensor
    """(N, 1, 32, 32), the depth that the head's strong branch reads from the latents."""
    consistency: Tensor
    """(N,), mean |d_S - d_W| of the head."""
    prior: Tensor
    """(N,), L_dp of `head`."""

    @classmethod
    def of(cls, batches: Sequence[Seen], count: int) -> Seen:
        """The first `count` pictures of batches."""
        return cls(**{f.name: torch.cat([getattr(b, f.name) for b in batches])[:count] for f in fields(cls)})


class Judges:
    """Depth judge and recogniser, and the depth head and prior that guide.

    seed: of the training of judge and recogniser; 0 for those of the demo model.
    """

    def __init__(self, drawings: Drawings, seed: int = 0) -> None:
        self.drawings = drawings
        self.prior = read_prior(drawings.prior_file)
        self.depth_judge, self.recogniser = load_judges(seed)
        self.checksums = drawings.checksums | {file.stem: checksum(file) for file in judge_files(seed)}

    def batch(self, group: Group, name: str, first: int) -> Seen:
        """The outputs for BATCH pictures of a row, which are drawn if they are missing."""
        drawn = self.drawings.draw(group, name, first)
        return self.look(self.drawings.folder(group, name) / f"{first}", drawn["pictures"], drawn["latents"])

    def drawn(self, group: Group, name: str) -> int:
        """How many of a row's pictures have been drawn without a gap."""
        firsts = group.batches(BATCH)
        missing = (first for first in firsts if not self.drawings.path(group, name, first).exists())
        return min(next(missing, firsts.stop) - firsts.start, group.samples)

    def seen(self, group: Group, name: str) -> Seen:
        """The outputs for a row's pictures."""
        return Seen.of([self.batch(group, name, first) for first in group.batches(BATCH)], group.samples)

    def look(self, batch: Path, pictures: Tensor, latents: Tensor) -> Seen:
        """The outputs for pictures (BATCH, 256, 256, 3) in uint8, kept in a file whose name begins so."""
        read = self.drawings.model_name, self.drawings.head_name
        names = ("depth_judge", "recogniser", *read, "depth_prior")
        judges = "".join(self.checksums[name][:4] for name in names)
        path = batch.parent / f"{batch.name}-seen-{judges}.safetensors"
        if not path.exists():
            judged, recognised = judge(self.depth_judge, pictures), recognise(self.recogniser, pictures)
            head, consistency = self.read_depth(latents)
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

    def read_depth(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`head` and `consistency` of Seen, from latents (N, 4, 32, 32)."""
        hosted = self.drawings.head
        network = hosted.head.network

        def work(frozen: FrozenModel) -> tuple[Tensor, Tensor]:
            strong, difference = [], []
            for batch in latents.split(BATCH):
                at = torch.full((len(batch),), READ_AT, device=frozen.device)
                maps = []
                for noise in seeded_noise(READ_NOISES, *batch.shape[1:]):
                    features = frozen.features(list(network.taps), batch, noise.expand_as(batch), at)
                    maps.append(
                        torch.stack(network.branches(features, at, batch.shape[-2:], ("strong", "weak")))
                    )
                d_strong, d_weak = torch.stack(maps).mean(0).cpu()
                strong.append(d_strong)
                difference.append((d_strong - d_weak).abs().mean((1, 2, 3)))
            return torch.cat(strong), torch.cat(difference)

        no_prompt, shape = conditioning(self.drawings.clip, [""]), (BATCH, *latents.shape[1:])
        return with_frozen_model(self.drawings.model, no_prompt, shape, work, [hosted.patcher])

    def prior_losses(self, depth: Tensor) -> Tensor:
        """Mean over PRIOR_TIMESTEPS of L_dp, (N,), of depth maps (N, 1, h, w)."""
        eta = seeded_noise(1, self.prior.size, self.prior.size)
        losses = []
        for batch in depth.split(BATCH):
            etas = eta.expand(len(batch), -1, -1, -1)
            at_timesteps = [literal_loss(self.prior, batch, etas, t) for t in PRIOR_TIMESTEPS]
            losses.append(torch.stack(at_timesteps).mean(0))
        return torch.cat(losses)

    def reference(self, seeds: range, count: int) -> Seen:
        """Renders of other scenes than `seeds` after the autoencoder; Frechet distances are to them."""
        return self.renders(REFERENCES[seeds], count)

    def renders(self, seeds: range, count: int) -> Seen:
        """The scenes themselves after the autoencoder."""
        batches = []
        for first in seeds[:count:BATCH]:
            scenes = self.drawings.scenes(first)
            folder = self.drawings.scene_folder / f"{first}"
            batches.append(self.look(folder, scenes["pictures"], scenes["latents"]))
        return Seen.of(batches, count)

    def bent(self, seeds: range, count: int) -> Seen:
        """The same, bent."""
        batches = []
        for first in seeds[:count:BATCH]:
            pictures = warp(self.drawings.scenes(first)["pictures"], BENT, seed=first)
            latents = self.drawings.vae.encode(pictures.float() / 255).cpu()
            batches.append(
                self.look(self.drawings.scene_folder / f"{first}-bent-{BENT:g}", pictures, latents)
            )
        return Seen.of(batches, count)

    def truth(self, seeds: range, count: int) -> Tensor:
        """Depth of the scenes, (N, 1, 32, 32)."""
        depth = self.drawings.scene_tensor("depth", seeds, count).float()
        return F.interpolate(depth[:, None], (32, 32), mode="area")

    def judge_accuracy(self, seeds: range, count: int) -> dict[str, DepthMetrics]:
        """How well the depth judge does on renders, before and after the autoencoder."""
        truth = self.truth(seeds, count)
        return {
            title: measure(
                judge(self.depth_judge, self.drawings.scene_tensor(name, seeds, count)).depth,
                truth,
                DepthRange(NEAR, FAR),
            )
            for title, name in (("renders", "renders"), ("renders after the autoencoder", "pictures"))
        }

    def shown(self, seeds: range, count: int) -> tuple[Tensor, Tensor]:
        """The kinds of solids that each scene shows, (N, kinds), and the kind of its largest, (N,)."""
        surfaces = self.drawings.scene_tensor("surface", seeds, count)
        return shown_solids([sample_scene(seed) for seed in seeds[:count]], list(surfaces))

    def write_sheets(self, name: str, group: Group) -> None:
        """Writes the first pictures of each complete row, with the judge's depth of them below."""
        tiles = []
        for row in group.rows:
            seen = self.seen(group, row)
            drawn = [self.drawings.draw(group, row, first) for first in group.batches(BATCH)]
            pictures = torch.cat([batch["pictures"] for batch in drawn])
            pictures = pictures[:SHEET_PICTURES].movedim(-1, 1).float() / 255
            depth = seen.depth[: len(pictures)].expand(-1, 3, -1, -1)
            for kind in (pictures, depth):
                resized = F.interpolate(kind, (SHEET_SIZE, SHEET_SIZE), mode="bilinear", antialias=True)
                tiles.append(resized.movedim(1, -1))
        save_sheet(torch.cat(tiles), self.drawings.work / f"{name}.png", columns=len(tiles[0]))


def seeded_noise(*shape: int) -> Tensor:
    """The same noise for all pictures."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
