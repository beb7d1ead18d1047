"""A ControlNet for the tiny models. Importing it skips the test where the host's cannot be imported."""

import pytest
import torch

controlnet = pytest.importorskip("comfy.controlnet")


class Residuals(controlnet.ControlBase):
    """A ControlNet that adds the same to every skip connection of the "small" UNet, and keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        self.seen.append(x_noisy.clone())
        grids, channels, rows = [16, 16, 8, 8], [32, 32, 32, 64], x_noisy.shape[0]
        return {
            "input": [],
            "middle": [torch.full((rows, 64, 8, 8), 0.5)],
            "output": [torch.full((rows, c, g, g), 0.5) for c, g in zip(channels, grids, strict=True)],
        }

    def get_models(self):
        return []
