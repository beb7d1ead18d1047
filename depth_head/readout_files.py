"""The public Readout depth heads, `readout_sdv15_spatial_depth.pt` and `readout_sdxl_spatial_depth.pt`.

Torch checkpoints: `config`, a plain dict; `aggregation_network`, the state dict that architectures/readout.py
has the names of; the optimiser's state, which is not needed. Read with weights_only=True and nothing else.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from .architectures.readout import Readout
from .files import fill
from .head import SD1, SDXL, DepthHead, middle_blocks

# Channels of the decoder's ResBlocks, deepest first.
FAMILIES = {
    (1280,) * 6 + (640,) * 3 + (320,) * 3: SD1,
    (1280,) * 3 + (640,) * 3 + (320,) * 3: SDXL,
}
EMBEDDING = ("time", 1280)
# Of the authors' training code, in some of their files, not used for depth.
UNUSED = ("logit_scale",)


def read_readout(path: Path) -> DepthHead:
    """A head from a public file. Raises ValueError, in one sentence, for anything else."""
    if not path.is_file():
        raise ValueError(f"There is no file {path.name}: refresh the list of files and choose another.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
    ) as error:
        raise ValueError(
            f"{path.name} is damaged, or holds more than weights and is therefore not opened: fetch it again "
            "from the authors' page."
        ) from error
    config, weights = _parts(path, checkpoint)
    family = FAMILIES.get(tuple(config["dims"]))
    if family is None:
        raise ValueError(
            f"{path.name} is a readout head for a UNet of other blocks than those of {SD1} or {SDXL}: only "
            "heads for these can be loaded."
        )
    taps = {f"r{i}": channels for i, channels in enumerate(config["dims"])}
    with torch.device("meta"):
        network = Readout(taps, [f"r{middle_blocks(len(taps))[1]}"], EMBEDDING, config["projection_dim"])
    fill(path, network, {name: weight for name, weight in weights.items() if name not in UNUSED})
    network.requires_grad_(False).eval()
    training = {"source": "Readout Guidance (arXiv:2312.02150)", "file": path.name}
    return DepthHead(network, family, training=training, name=path.name)


def _parts(path: Path, checkpoint: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and weights of a checkpoint that has the public heads' layout."""
    match checkpoint:
        case {
            "config": {
                "projection_dim": 384,
                "dims": [*_],
                "save_timestep": [_],
                "aggregation_kwargs": {"use_output_head": True, "output_head_channels": 3},
            } as config,
            "aggregation_network": dict() as weights,
        } if all(isinstance(weight, torch.Tensor) for weight in weights.values()):
            return config, weights
    raise ValueError(
        f"{path.name} is not a depth head of Readout Guidance: choose one of its spatial_depth files, or a "
        "safetensors file of Save Depth Head."
    )
