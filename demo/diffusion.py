"""Trains a demo diffusion model on latents of the demo world."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .denoisers import TextToFlow, TextToLatent
from .latents import load_latents
from .progress import Training
from .scenes import sample_scene
from .text import CONTEXT_LENGTH, EMPTY, SceneTokenizer

BATCH = 16
LEARNING_RATE = 1e-3
MUON_SCALE = 3.0
EMPTY_PROMPTS = 0.1
"""Share of the samples without a prompt, for classifier-free guidance."""
PARTIAL_PROMPTS = 0.3
"""Share of the samples with half of their phrases, so that prompts may be shorter than a caption."""
AVERAGE_DECAY = 0.999
CHECKPOINT_MINUTES = 15.0


def train_diffusion(
    stage: str,
    model: TextToLatent | TextToFlow,
    latents: Path,
    checkpoint: Path,
    minutes: float,
    device: str,
    after_checkpoint: Callable[[dict[str, Tensor], int], None],
) -> None:
    """Trains `model` for `minutes`, earlier calls included.

    after_checkpoint: called with the averaged weights and the number of samples so far.
    """
    seeds, x0 = load_latents(latents)
    phrases = [[_tokens(phrase) for phrase in sample_scene(seed).phrases] for seed in seeds]

    training = Training(stage, model.to(device), _optimisers(model), checkpoint, minutes)
    budget = training.budget
    rng = np.random.default_rng(training.step)
    smooth = None
    bar = tqdm(desc=stage, unit="img", initial=training.step * BATCH)
    while budget.fraction < 1:
        rows = rng.integers(len(x0), size=BATCH)
        tokens = torch.stack([_prompt(phrases[row], rng) for row in rows])
        loss = model.loss(x0[rows].to(device), tokens.to(device))
        training.learn(loss, budget.rate(LEARNING_RATE, training.step, floor=0.03), AVERAGE_DECAY)
        bar.update(BATCH)
        smooth = loss.item() if smooth is None else 0.99 * smooth + 0.01 * loss.item()
        if training.step % 25 == 0:
            bar.set_postfix(loss=f"{smooth:.4f}", left=f"{minutes - budget.elapsed:.1f} min")
        if training.save_every(CHECKPOINT_MINUTES):
            after_checkpoint(training.average, training.step * BATCH)


def _optimisers(model: TextToLatent | TextToFlow) -> list[torch.optim.Optimizer]:
    """AdamW; for the matrices inside the transformer's blocks Muon, at MUON_SCALE times the learning rate."""
    blocks = model.transformer.layers if isinstance(model, TextToFlow) else ()
    matrices = [p for block in blocks for p in block.parameters() if p.ndim == 2]
    taken = {id(matrix) for matrix in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    adam = torch.optim.AdamW(others, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    if not matrices:
        return [adam]
    scaled = [{"params": matrices, "scale": MUON_SCALE}]
    return [adam, torch.optim.Muon(scaled, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")]


def _tokens(phrase: str) -> list[int]:
    section = SceneTokenizer().tokenize_with_weights(phrase)["scene"][0]
    return [token for token, _ in section if token != EMPTY]


def _prompt(phrases: list[list[int]], rng: np.random.Generator) -> Tensor:
    """Tokens (CONTEXT_LENGTH,) of a caption, of about half of its phrases, or of the empty prompt."""
    chance = rng.random()
    if chance < EMPTY_PROMPTS:
        phrases = []
    elif chance < EMPTY_PROMPTS + PARTIAL_PROMPTS:
        phrases = [phrase for phrase in phrases if rng.random() < 0.5]
    tokens = [token for phrase in phrases for token in phrase]
    return torch.tensor(tokens + [EMPTY] * (CONTEXT_LENGTH - len(tokens)))
