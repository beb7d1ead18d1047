"""Trains a demo diffusion model on latents of the demo world."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from .denoisers import TextToFlow, TextToLatent
from .latents import load_latents
from .progress import Training
from .scenes import sample_scene
from .text import CONTEXT_LENGTH, EMPTY, SceneTokenizer

BATCH = 32
LEARNING_RATE = 1e-3
EMPTY_PROMPTS = 0.1
"""Share of the samples without a prompt, for classifier-free guidance."""
PARTIAL_PROMPTS = 0.2
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
    scenes = [sample_scene(seed) for seed in seeds]
    phrases = [[_tokens(phrase) for phrase in scene.phrases] for scene in scenes]
    by_solids = np.cumsum([len(scene.solids) for scene in scenes])

    training = Training(stage, model.to(device), _optimisers(model), checkpoint, minutes)
    # On a CPU the backward pass of the fused kernel is slow: without it a step takes 0.87 of the time.
    fused = [] if device == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    budget = training.budget
    rng = np.random.default_rng(training.step)
    smooth = None
    bar = tqdm(desc=stage, unit="img", initial=training.step * BATCH)
    while budget.fraction < 1:
        rows, prompts = zip(*(_sample(phrases, by_solids, rng) for _ in range(BATCH)), strict=True)
        tokens = torch.stack(prompts)
        with sdpa_kernel([*fused, SDPBackend.MATH]):
            loss = model.loss(x0[list(rows)].to(device), tokens.to(device))
        training.learn(loss, budget.rate(LEARNING_RATE, training.step, floor=0.03), AVERAGE_DECAY)
        bar.update(BATCH)
        smooth = loss.item() if smooth is None else 0.99 * smooth + 0.01 * loss.item()
        if training.step % 25 == 0:
            bar.set_postfix(loss=f"{smooth:.4f}", left=f"{minutes - budget.elapsed:.1f} min")
        if training.save_every(CHECKPOINT_MINUTES):
            after_checkpoint(training.average, training.step * BATCH)


def _optimisers(model: TextToLatent | TextToFlow) -> list[torch.optim.Optimizer]:
    """Muon for the weights in the blocks, at `muon_scale` times the learning rate; AdamW for the others."""
    inside = [weight for block in model.blocks for weight in block.parameters() if weight.ndim > 1]
    taken = {id(weight) for weight in inside}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    matrices = [{"params": [_as_matrix(weight) for weight in inside], "scale": model.muon_scale}]
    return [
        torch.optim.AdamW(others, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True),
        torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]


def _as_matrix(weight: nn.Parameter) -> nn.Parameter:
    """The weight of a layer or convolution as a matrix (out, in), which is what Muon takes.

    The matrix shares the memory of the weight and, after every backward pass, of its gradient.
    """
    matrix = nn.Parameter(weight.detach().flatten(1))

    def share_gradient(weight: Tensor) -> None:
        if weight.grad is not None:
            matrix.grad = weight.grad.flatten(1)

    weight.register_post_accumulate_grad_hook(share_gradient)
    return matrix


def _tokens(phrase: str) -> list[int]:
    section = SceneTokenizer().tokenize_with_weights(phrase)["scene"][0]
    return [token for token, _ in section if token != EMPTY]


def _sample(
    phrases: list[list[list[int]]], by_solids: np.ndarray, rng: np.random.Generator
) -> tuple[int, Tensor]:
    """A scene's number and the tokens (CONTEXT_LENGTH,) of its caption, of half of its phrases, or of none.

    With half of the phrases and with none, all scenes are equally likely. With a full caption a scene's
    chance is proportional to its number of solids, because several solids are harder to draw. The
    distribution of scenes for a given caption stays as it is.

    by_solids: (scenes,), cumulative sum of the scenes' numbers of solids.
    """
    chance = rng.random()
    if chance < EMPTY_PROMPTS + PARTIAL_PROMPTS:
        row = int(rng.integers(len(phrases)))
    else:
        row = int(np.searchsorted(by_solids, rng.integers(by_solids[-1]), side="right"))
    chosen = phrases[row]
    if chance < EMPTY_PROMPTS:
        chosen = []
    elif chance < EMPTY_PROMPTS + PARTIAL_PROMPTS:
        chosen = [phrase for phrase in chosen if rng.random() < 0.5]
    tokens = [token for phrase in chosen for token in phrase]
    return row, torch.tensor(tokens + [EMPTY] * (CONTEXT_LENGTH - len(tokens)))
