"""The demo transformer for the host: a small NextDiT, the class of Lumina 2 and Z-Image."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.supported_models_base
from torch import Tensor

from .latent_format import DemoLatent
from .text import CONTEXT_DIM

TRANSFORMER_CONFIG = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 4,
    "dim": 192,
    "n_heads": 3,
    "n_kv_heads": 3,
    "n_layers": 7,
    "n_refiner_layers": 1,
    "multiple_of": 8,
    "ffn_dim_multiplier": 27 / 8,
    "qk_norm": True,
    "cap_feat_dim": CONTEXT_DIM,
    "axes_dims": [16, 24, 24],
    "axes_lens": [64, 64, 64],
    "rope_theta": 100.0,
    "time_scale": 1000.0,
}
"""6.0 M parameters. A latent of 32 x 32 has 16 x 16 tokens, which follow those of the prompt."""
UNSHIFTED = {"multiplier": 1.0, "shift": 1.0}


class DemoTransformer(comfy.supported_models_base.BASE):
    """The host's model description: the velocity e - x0 at sigma in [0, 1], with an unshifted schedule."""

    sampling_settings: Any = UNSHIFTED
    latent_format = DemoLatent
    memory_usage_factor = 1.0

    def get_model(
        self, state_dict: dict[str, Tensor], prefix: str = "", device: object = None
    ) -> comfy.model_base.BaseModel:
        """The host's Lumina 2 in this size, without weights."""
        return comfy.model_base.Lumina2(self, device=device)
