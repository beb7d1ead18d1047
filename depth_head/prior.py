"""The depth prior: a small diffusion UNet on depth maps alone, eps_phi of DAG's prior guidance.

It judges a depth map by how well it predicts the noise that was put on it (guidance/depth_aware.py). Depth is
(B, 1, h, w) in [0, 1]; the network sees it resized to size x size, whatever its proportions, and scaled to
[-1, 1]. Noise is predicted (eps) on Stable Diffusion's schedule. The UNet is the host's class, so the host
makes it (host/depth/priors.py); nothing here knows the host.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .depth_maps import resize_antialiased
from .fitting import Interruption, stratified

SIZES = (32, 64, 128)
DEFAULT_SIZE = 64
TIMESTEPS = 1000
WARM_UP = 0.05
AVERAGE_DECAY = 0.999


def schedule() -> Tensor:
    """The abar of every timestep, (TIMESTEPS,) float64: Stable Diffusion's scaled linear betas."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


@dataclass(frozen=True)
class DepthPrior:
    """unet(x (B, 1, size, size), timesteps (B,)) -> noise, in evaluation mode, float32.

    training: a summary, plain values. name: the file's, for messages.
    """

    unet: nn.Module
    size: int
    training: Mapping[str, Any] = field(default_factory=dict)
    name: str = "the depth prior"


def to_prior(depth: Tensor, size: int) -> Tensor:
    """Depth in [0, 1] as the prior sees it: (B, 1, size, size) in [-1, 1]. Differentiable."""
    if depth.shape[-2:] != (size, size):
        depth = resize_antialiased(depth, size, size)
    return depth * 2 - 1


@torch.enable_grad()
def train_prior(
    unet: nn.Module,
    depths: Tensor,
    size: int,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    on_step: Callable[[int, list[float]], None],
    interruption: Interruption = (),
) -> list[float]:
    """Train a freshly made UNet, in place, and leave it with the average of its weights.

    depths (N, 1, h, w) in [0, 1], on any device. Maps are also shown mirrored. Timesteps are stratified over
    a batch. on_step is called with the number of steps done and the losses. interruption: an exception of
    unet or on_step that ends the training, and keeps what was learned, once a step is done; before that it is
    raised. Returns the loss of every step. Raises ValueError if the training diverges. To be called outside
    inference mode.
    """
    device = next(unet.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    maps = to_prior(depths.float(), size)
    abar = schedule().float()
    unet.requires_grad_(True).train()
    optimiser = torch.optim.AdamW(unet.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    average = {name: w.detach().clone() for name, w in unet.named_parameters()}
    losses: list[float] = []
    try:
        for step in range(steps):
            on_step(step, losses)
            rate = learning_rate * learning_rate_share(step, steps)
            for group in optimiser.param_groups:
                group["lr"] = rate
            rows = torch.randint(len(maps), (batch_size,), generator=generator)
            clean = maps[rows.to(maps.device)]
            mirrored = torch.rand(batch_size, generator=generator) < 0.5
            clean = torch.where(mirrored.view(-1, 1, 1, 1).to(clean.device), clean.flip(-1), clean).to(device)
            timesteps = (stratified(batch_size, generator) * TIMESTEPS).long().clamp_max(TIMESTEPS - 1)
            level = abar[timesteps].view(-1, 1, 1, 1).to(device)
            eta = torch.randn(clean.shape, generator=generator).to(device)
            noised = level.sqrt() * clean + (1 - level).sqrt() * eta
            loss = F.mse_loss(unet(noised, timesteps.float().to(device)), eta)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            if not (loss.isfinite() & norm.isfinite()):
                raise ValueError(
                    f"The training diverged after {step} steps: its numbers are no longer finite. Lower "
                    "learning_rate."
                )
            optimiser.step()
            decay = min(AVERAGE_DECAY, (1 + step) / (10 + step))
            for name, weight in unet.named_parameters():
                average[name].lerp_(weight.detach(), 1 - decay)
            losses.append(loss.item())
    except interruption:
        if not losses:
            raise
    unet.load_state_dict(average, strict=False)
    unet.requires_grad_(False).eval()
    return losses


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the full learning rate: a linear warm-up, then a cosine down to 3 %."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def draw(prior: DepthPrior, count: int, seed: int, steps: int = 25) -> Tensor:
    """Depth maps that the prior draws from noise: (count, 1, size, size) in [0, 1].

    Ancestral steps: their fresh noise hides the errors of a briefly trained prior, which a deterministic
    sampler would accumulate.
    """
    device = next(prior.unet.parameters()).device
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(count, 1, prior.size, prior.size, generator=generator).to(device)

    x = noise()
    abar = schedule().float().to(device)
    timesteps = torch.linspace(TIMESTEPS - 1, 0, steps).long().tolist()
    for t, following in zip(timesteps, [*timesteps[1:], 0], strict=True):
        eta = prior.unet(x, torch.full((count,), float(t), device=device))
        clean = ((x - (1 - abar[t]).sqrt() * eta) / abar[t].sqrt()).clamp(-1, 1)
        eta = (x - abar[t].sqrt() * clean) / (1 - abar[t]).sqrt()
        fresh = (1 - abar[following]) / (1 - abar[t]) * (1 - abar[t] / abar[following])
        x = abar[following].sqrt() * clean + (1 - abar[following] - fresh).sqrt() * eta
        x = x + fresh.sqrt() * noise()
    return (clean + 1) / 2
