"""Trains the demo model's UNet and text encoder together on latents of the demo world."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .latents import load_latents
from .model import UNET_CONFIG, DemoWorld
from .progress import Training
from .scenes import sample_scene
from .text import CONTEXT_LENGTH, EMPTY, SceneTextEncoder, SceneTokenizer

BATCH = 16
LEARNING_RATE = 1e-3
EMPTY_PROMPTS = 0.1
"""Share of the samples without a prompt, for classifier-free guidance."""
PARTIAL_PROMPTS = 0.3
"""Share of the samples with half of their phrases, so that prompts may be shorter than a caption."""
AVERAGE_DECAY = 0.999
CHECKPOINT_MINUTES = 5.0


class TextToLatent(nn.Module):
    """UNet and text encoder, which are trained together. The UNet is the host's class."""

    def __init__(self) -> None:
        super().__init__()
        config = DemoWorld(UNET_CONFIG)
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "")
        self.alpha_bar = 1 / (1 + model.model_sampling.sigmas.double() ** 2)
        self.unet = model.diffusion_model
        self.text = SceneTextEncoder()
        _reset_weights(self)
        for block in self.unet.modules():
            if hasattr(block, "out_layers"):
                _zero(block.out_layers[-1])
            if hasattr(block, "proj_out"):
                _zero(block.proj_out)
        _zero(self.unet.out[-1])
        nn.init.normal_(self.text.words.weight, std=0.5)
        self.requires_grad_(True).train()

    def loss(self, x0: Tensor, tokens: Tensor) -> Tensor:
        """Mean squared error of the velocity v = sqrt(abar) e - sqrt(1 - abar) x0 at stratified timesteps."""
        count = len(x0)
        strata = (torch.randperm(count) + torch.rand(count)) / count
        t = (strata * len(self.alpha_bar)).long()
        abar = self.alpha_bar[t].float().to(x0.device).view(-1, 1, 1, 1)
        noise = torch.randn_like(x0)
        x = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
        v = abar.sqrt() * noise - (1 - abar).sqrt() * x0
        with torch.autocast(x0.device.type, torch.bfloat16):
            predicted = self.unet(x, t.float().to(x0.device), context=self.text(tokens))
        return F.mse_loss(predicted.float(), v)


def _reset_weights(model: nn.Module) -> None:
    """Gives torch's default weights to the host's layers, whose own `reset_parameters` does nothing."""
    kinds: tuple[Any, ...] = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm)
    for layer in model.modules():
        for kind in kinds:
            if isinstance(layer, kind):
                kind.reset_parameters(layer)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def train_diffusion(
    latents: Path,
    checkpoint: Path,
    minutes: float,
    device: str,
    after_checkpoint: Callable[[dict[str, Tensor], int], None],
) -> None:
    """Trains for `minutes`, earlier calls included.

    after_checkpoint: called with the averaged weights and the number of samples so far.
    """
    seeds, x0 = load_latents(latents)
    phrases = [[_tokens(phrase) for phrase in sample_scene(seed).phrases] for seed in seeds]

    model = TextToLatent().to(device)
    optimiser = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    training = Training("diffusion", model, optimiser, checkpoint, minutes)
    budget = training.budget
    rng = np.random.default_rng(training.step)
    smooth = None
    bar = tqdm(desc="diffusion", unit="img", initial=training.step * BATCH)
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
