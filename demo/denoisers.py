"""The demo diffusion models in training: a denoiser of the host's class, the text encoder and the loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from comfy.supported_models_base import BASE
from torch import Tensor, nn

from .model import UNET_CONFIG, DemoWorld
from .text import SceneTextEncoder
from .transformer import TRANSFORMER_CONFIG, DemoTransformer


class TextToLatent(nn.Module):
    """UNet and text encoder. text: weights of the text encoder, which stays as it is; None trains it too."""

    muon_scale = 1.0

    def __init__(self, text: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        model = _host_model(DemoWorld(UNET_CONFIG))
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
        if text is not None:
            self.text.load_state_dict(text)
            self.text.requires_grad_(False)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks between the first and the last convolution."""
        return [*self.unet.input_blocks[1:], self.unet.middle_block, *self.unet.output_blocks]

    def loss(self, x0: Tensor, tokens: Tensor) -> Tensor:
        """Mean squared error of the velocity v = sqrt(abar) e - sqrt(1 - abar) x0 at stratified timesteps.

        Their density rises linearly from 0.5 at t = 0 to 1.5 at the last, because the layout is decided
        where there is much noise.
        """
        t = (((1 + 8 * _stratified(len(x0))).sqrt() - 1) / 2 * len(self.alpha_bar)).long()
        abar = self.alpha_bar[t].float().to(x0.device).view(-1, 1, 1, 1)
        noise = torch.randn_like(x0)
        x = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
        v = abar.sqrt() * noise - (1 - abar).sqrt() * x0
        with torch.autocast(x0.device.type, torch.bfloat16):
            predicted = self.unet(x, t.float().to(x0.device), context=self.text(tokens))
        return F.mse_loss(predicted.float(), v)


class TextToFlow(nn.Module):
    """The transformer, with the UNet's text encoder; the text encoder is frozen."""

    muon_scale = 3.0

    def __init__(self, text: dict[str, Tensor]) -> None:
        super().__init__()
        self.transformer = _host_model(DemoTransformer(TRANSFORMER_CONFIG)).diffusion_model
        _reset_weights(self)
        for block in self.transformer.modules():
            if hasattr(block, "adaLN_modulation"):
                _zero(block.adaLN_modulation[-1])
        _zero(self.transformer.final_layer.linear)
        self.transformer.requires_grad_(True).train()
        self.text = SceneTextEncoder()
        self.text.load_state_dict(text)
        self.text.requires_grad_(False)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks of the image."""
        return list(self.transformer.layers)

    def loss(self, x0: Tensor, tokens: Tensor) -> Tensor:
        """Mean squared error of e - x0 at x = (1 - sigma) x0 + sigma e, the logit of sigma from N(0, 1)."""
        sigma = torch.special.ndtri(_stratified(len(x0))).sigmoid().to(x0.device)
        noise = torch.randn_like(x0)
        x = x0.lerp(noise, sigma.view(-1, 1, 1, 1))
        with torch.autocast(x0.device.type, torch.bfloat16):
            context = self.text(tokens)
            predicted = self.transformer(x, sigma, context, context.shape[1])
        return F.mse_loss(predicted.float(), noise - x0)


def _host_model(config: BASE) -> Any:
    config.set_inference_dtype(torch.float32, None)
    return config.get_model({}, "")


def _stratified(count: int) -> Tensor:
    """`count` numbers in (0, 1), one in each of as many equal parts, in random order."""
    return (torch.randperm(count) + torch.rand(count).clamp(1e-4, 1 - 1e-4)) / count


def _reset_weights(model: nn.Module) -> None:
    """Gives torch's default weights to the host's layers; their own `reset_parameters` does nothing."""
    kinds: tuple[Any, ...] = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    for layer in model.modules():
        for kind in kinds:
            if isinstance(layer, kind):
                kind.reset_parameters(layer)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
