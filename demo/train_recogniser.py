"""Trains the recogniser on renders, which are shrunk and labelled once."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .examples import Examples, JudgeTraining, train_on_examples
from .ray_casting import FIRST_SOLID, render
from .recogniser import PAIRS, ROOM_HEADS, SIZE, STRIDE, Recogniser, Recognition, scene_labels, shrink
from .scenes import Scene

BATCH = 32
NOISE = 0.03
"""Largest standard deviation of the noise on training pictures, so that autoencoder faults do not matter."""


def train_recogniser(options: JudgeTraining) -> dict[str, Tensor]:
    """The averaged weights."""
    return train_on_examples("recogniser", Recogniser, _loss, label, BATCH, options)


def _loss(model: nn.Module, batch: Examples, rng: np.random.Generator) -> Tensor:
    pictures, places = _augment(batch["pictures"].float() / 255, batch["places"], rng)
    with torch.autocast(pictures.device.type, torch.bfloat16):
        recognition = model(pictures)
    return recognition_loss(recognition, batch | {"places": places})


def label(pictures: Tensor, scenes: list[Scene]) -> Examples:
    """Pictures of SIZE pixels, and labels under the names of the heads and under "places"."""
    surfaces = [render(scene, size=SIZE).surface for scene in scenes]
    labels = [
        scene_labels(*seen) | {"places": place_labels(*seen)} for seen in zip(scenes, surfaces, strict=True)
    ]
    return {"pictures": shrink(pictures.float(), SIZE).round().to(torch.uint8)} | {
        name: torch.stack([of_scene[name] for of_scene in labels]) for name in labels[0]
    }


def place_labels(scene: Scene, surface: Tensor) -> Tensor:
    """(SIZE / STRIDE, SIZE / STRIDE): 1 + index in PAIRS of the solid at each place of the map, else 0."""
    kinds = [0] * FIRST_SOLID + [1 + PAIRS.index((solid.colour, solid.shape)) for solid in scene.solids]
    return torch.tensor(kinds)[surface[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].long()]


def recognition_loss(recognition: Recognition, labels: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of the places, of floor and of wall, plus binary cross-entropy of the objects.

    The last is a sum over the kinds of solids; the others are means.
    """
    logits = {head: logits.float() for head, logits in recognition.logits.items()}
    none = torch.zeros_like(recognition.places[:, :1])
    loss = F.cross_entropy(torch.cat([none, recognition.places], 1).float(), labels["places"])
    loss = loss + len(PAIRS) * F.binary_cross_entropy_with_logits(logits["objects"], labels["objects"])
    return loss + sum(F.cross_entropy(logits[head], labels[head]) for head in ROOM_HEADS)


def _augment(pictures: Tensor, places: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mirrors half of the pictures (N, 3, H, W) and places (N, h, w); noise of a random strength on all."""
    mirrored = torch.from_numpy(rng.random(len(pictures)) < 0.5).to(pictures.device)
    pictures = torch.where(mirrored[:, None, None, None], pictures.flip(-1), pictures)
    places = torch.where(mirrored[:, None, None], places.flip(-1), places)
    strength = NOISE * torch.rand(len(pictures), 1, 1, 1, device=pictures.device)
    noisy = pictures + strength * torch.randn_like(pictures)
    return noisy.contiguous(memory_format=torch.channels_last), places
