"""Trains the recogniser on renders, shrunk and labelled once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .progress import Budget, read_checkpoint, update_average, write_checkpoint
from .recogniser import HEADS, PAIRS, ROOM_HEADS, SIZE, STRIDE, Recogniser, Recognition, scene_labels, shrink
from .renders import shards
from .world import FIRST_SOLID, Scene, render, sample_scene

BATCH = 32
LEARNING_RATE = 2e-3
NOISE = 0.03
"""Largest standard deviation of the noise on training pictures: the autoencoder's faults must not matter."""
CHECKPOINT_MINUTES = 1.0
LABELS = (*HEADS, "places")


def label_shards(renders: Path, examples: Path) -> None:
    """Writes pictures of SIZE pixels and their labels for every shard of renders; finished ones are kept."""
    examples.mkdir(parents=True, exist_ok=True)
    missing = [path for path in shards(renders) if not (examples / f"{path.stem}.npz").exists()]
    for path in tqdm(missing, desc="labelling", unit="shard"):
        pictures = shrink(torch.from_numpy(np.load(path)).float()).round().to(torch.uint8)
        scenes = [sample_scene(int(path.stem) + i) for i in range(len(pictures))]
        surfaces = [render(scene, size=SIZE).surface for scene in scenes]
        labels = [
            scene_labels(*seen) | {"places": place_labels(*seen)}
            for seen in zip(scenes, surfaces, strict=True)
        ]
        stacked = {name: torch.stack([label[name] for label in labels]).numpy() for name in LABELS}
        unfinished = examples / f"{path.stem}.unfinished"
        with open(unfinished, "wb") as file:
            np.savez(file, pictures=pictures.numpy(), **stacked)
        unfinished.rename(examples / f"{path.stem}.npz")


def place_labels(scene: Scene, surface: Tensor) -> Tensor:
    """(SIZE / STRIDE, SIZE / STRIDE): 1 + number in PAIRS of the solid at each place of the map, or 0."""
    kinds = [0] * FIRST_SOLID + [1 + PAIRS.index((solid.colour, solid.shape)) for solid in scene.solids]
    return torch.tensor(kinds)[surface[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].long()]


def load_examples(examples: Path) -> dict[str, Tensor]:
    """Pictures (N, 3, SIZE, SIZE) in uint8 under "pictures", labels under the names of the heads."""
    arrays = [np.load(path) for path in sorted(examples.glob("*.npz"))]
    return {
        name: torch.from_numpy(np.concatenate([a[name] for a in arrays])) for name in ("pictures", *LABELS)
    }


def train_recogniser(
    renders: Path, examples: Path, checkpoint: Path, minutes: float, device: str
) -> dict[str, Tensor]:
    """Trains for `minutes` in all, earlier calls included; returns the averaged weights."""
    label_shards(renders, examples)
    data = load_examples(examples)

    model = Recogniser().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.02)
    step, spent = 0, 0.0
    average = {name: weight.clone() for name, weight in model.state_dict().items()}
    if state := read_checkpoint(checkpoint):
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average = {name: weight.to(device) for name, weight in state["average"].items()}
        step, spent = state["step"], state["spent"]

    rng = np.random.default_rng(step)
    budget = Budget(minutes, spent)
    saved = spent
    bar = tqdm(desc="recogniser", unit="step", initial=step)
    while budget.fraction < 1:
        for group in optimiser.param_groups:
            group["lr"] = budget.rate(LEARNING_RATE, step)
        rows = torch.from_numpy(rng.integers(len(data["pictures"]), size=BATCH))
        batch = {name: values[rows].to(device) for name, values in data.items()}
        pictures, places = _augment(batch["pictures"].float() / 255, batch["places"], rng)
        with torch.autocast(device, torch.bfloat16):
            recognition = model(pictures)
        loss = recognition_loss(recognition, batch | {"places": places})
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        update_average(average, model, step, 0.998)
        step += 1
        bar.update()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", left=f"{minutes - budget.elapsed:.1f} min")
        if budget.elapsed > saved + CHECKPOINT_MINUTES or budget.fraction == 1:
            saved = budget.elapsed
            write_checkpoint(
                checkpoint,
                model=model.state_dict(),
                average=average,
                optimiser=optimiser.state_dict(),
                step=step,
                spent=saved,
            )
    return average


def recognition_loss(recognition: Recognition, labels: dict[str, Tensor]) -> Tensor:
    """Cross-entropy over the places and for floor and wall + binary cross-entropy of the objects.

    The last is summed over the kinds; everything else is a mean.
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
