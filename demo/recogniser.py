"""A network that names the objects, floor and wall in a picture of the demo world.

It is trained on renders alone and never sees a drawn picture, so it can judge the demo model: are the objects
of the prompt there, and how far are its features on drawn pictures from those on renders?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .measures import any_of, precision, recall
from .ray_casting import FIRST_SOLID
from .scenes import COLOURS, FLOOR_PATTERNS, FLOOR_TINTS, SHAPES, WALL_TINTS, Scene

RECOGNISER_FILE = "recogniser.safetensors"
SIZE = 96
STRIDE = 8
WIDTHS = (32, 64, 128)

PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
"""The kinds of solids, in the order of the labels."""
ROOM_HEADS = {
    "floor pattern": len(FLOOR_PATTERNS),
    "floor tint": len(FLOOR_TINTS),
    "wall tint": len(WALL_TINTS),
}
"""Number of classes of each head for floor and wall."""
HEADS = ("objects", *ROOM_HEADS)

VISIBLE = 0.004
"""Share of the picture that a solid must cover to count as visible."""


@dataclass(frozen=True)
class Recognition:
    """The outputs of the network for N pictures."""

    features: Tensor
    """(N, C), the mean of the last map."""
    places: Tensor
    """(N, PAIRS, SIZE / STRIDE, SIZE / STRIDE), log-odds of each kind of solid against none."""
    logits: dict[str, Tensor]
    """(N, classes) by head."""


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The output has the same shape."""
        return x + self.layers(x)


class Recogniser(nn.Module):
    """A residual network. Its last map has one place for every STRIDE x STRIDE pixels.

    Each place has logits of the kinds of solids; those of the picture are their maxima over the places. Floor
    and wall are classified from the mean over the places.
    """

    def __init__(self) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.trunk = nn.Sequential(
            nn.Conv2d(3, first, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            Residual(second),
            nn.Conv2d(second, third, 3, stride=2, padding=1),
            Residual(third),
            Residual(third),
            nn.GroupNorm(8, third),
            nn.SiLU(),
        )
        self.objects = nn.Conv2d(third, len(PAIRS), 1)
        self.room = nn.Linear(third, sum(ROOM_HEADS.values()))

    def forward(self, pictures: Tensor) -> Recognition:
        """Pictures (N, 3, SIZE, SIZE) in [0, 1]."""
        trunk = self.trunk(pictures - 0.5)
        places, features = self.objects(trunk), trunk.mean((2, 3))
        room = self.room(features).split(list(ROOM_HEADS.values()), 1)
        logits = {"objects": places.amax((2, 3))} | dict(zip(ROOM_HEADS, room, strict=True))
        return Recognition(features, places, logits)


def shrink(pictures: Tensor, size: int) -> Tensor:
    """Pictures (N, H, W, 3) to (N, 3, size, size), by area averages."""
    return F.interpolate(pictures.permute(0, 3, 1, 2), size=(size, size), mode="area")


def scene_labels(scene: Scene, surface: Tensor) -> dict[str, Tensor]:
    """Labels by head: zeros and ones (PAIRS,) for the visible kinds of solids, class numbers for the rest.

    surface: the surface numbers of a render of any size.
    """
    objects = torch.zeros(len(PAIRS))
    for solid, pixels in zip(scene.solids, solid_pixels(scene, surface), strict=True):
        if pixels >= VISIBLE * surface.numel():
            objects[PAIRS.index((solid.colour, solid.shape))] = 1
    return {
        "objects": objects,
        "floor pattern": torch.tensor(FLOOR_PATTERNS.index(scene.floor_pattern)),
        "floor tint": torch.tensor(list(FLOOR_TINTS).index(scene.floor_tint)),
        "wall tint": torch.tensor(list(WALL_TINTS).index(scene.wall_tint)),
    }


def main_pair(scene: Scene, surface: Tensor) -> int:
    """Index in PAIRS of the solid that covers most of the picture."""
    main = scene.solids[int(solid_pixels(scene, surface).argmax())]
    return PAIRS.index((main.colour, main.shape))


def shown_solids(scenes: Sequence[Scene], surfaces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The kinds of solids that scenes show, zeros and ones (N, PAIRS), and the kind of each largest, (N,).

    surfaces: the surface numbers of the scenes' renders.
    """
    pairs = list(zip(scenes, surfaces, strict=True))
    present = torch.stack([scene_labels(*pair)["objects"] for pair in pairs])
    return present, torch.tensor([main_pair(*pair) for pair in pairs])


def solid_pixels(scene: Scene, surface: Tensor) -> Tensor:
    """Pixels that each solid covers, (solids,)."""
    return surface.flatten().long().bincount(minlength=FIRST_SOLID + len(scene.solids))[FIRST_SOLID:]


@torch.inference_mode()
def recognise(recogniser: Recogniser, pictures: Tensor) -> Recognition:
    """The outputs for pictures (N, H, W, 3) in uint8."""
    seen = [recogniser(shrink(batch.float() / 255, SIZE)) for batch in pictures.split(50)]
    return Recognition(
        features=torch.cat([part.features for part in seen]),
        places=torch.cat([part.places for part in seen]),
        logits={head: torch.cat([part.logits[head] for part in seen]) for head in HEADS},
    )


def recognition_scores(seen: Recognition, labels: dict[str, Tensor], main: Tensor) -> dict[str, float]:
    """Shares of the pictures, or of their objects, on which recogniser and labels agree.

    main: index in PAIRS of each picture's largest solid, (N,).
    """
    objects = seen.logits["objects"].sigmoid()
    pairs = objects.view(-1, len(COLOURS), len(SHAPES))
    picture, colour, shape = torch.arange(len(main)), main // len(SHAPES), main % len(SHAPES)
    found, present = objects > 0.5, labels["objects"] > 0.5
    return {
        "main object's colour and shape": _share(found[picture, main]),
        "main object's colour": _share(any_of(pairs, 2)[picture, colour] > 0.5),
        "main object's shape": _share(any_of(pairs, 1)[picture, shape] > 0.5),
        "objects of the prompt that are found": recall(found, present),
        "found objects that are in the prompt": precision(found, present),
        **{head: _share(seen.logits[head].argmax(1) == labels[head]) for head in ROOM_HEADS},
    }


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()
