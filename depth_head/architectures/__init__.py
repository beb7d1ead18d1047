"""Depth from features, or from the latent: three architectures, one interface.

    network.taps                      what it reads: tap name -> channels, deepest block first
    network.branch_taps[branch]       the names out of these that a branch reads; strong first
    network.branches(features, time, size, branches)
                                      depth of several branches, what they share computed once
    network.config                    plain values from which `build` makes the same network again
    network(features, time, size, branch)
                                      (B, 1, *size), relative inverse depth in [0, 1], near = 1

features: tap name -> (B, C, h, w), every block at its own resolution and in any precision; one entry may be
the UNet's embedding of the time, (B, C). time (B,): continuous, in [0, 1000), the timestep where the model's
schedule has timesteps. size: the latent's height and width. branch: "strong" or "weak". All is computed in
float32, so a model in half precision needs no care.

A `latent` network has one feature, the clean latent, and no weak branch. Its time is that of a flow model
with as much noise to signal, whatever the model.
"""

from collections.abc import Mapping
from typing import Any

from .latent import LatentDepth
from .pixel_mlp import PixelMLP
from .readout import Readout

STRONG, WEAK = BRANCHES = ("strong", "weak")

LATENT = "latent"

DepthNetwork = PixelMLP | Readout | LatentDepth

ARCHITECTURES: dict[str, type[DepthNetwork]] = {
    "pixel_mlp": PixelMLP,
    "readout": Readout,
    LATENT: LatentDepth,
}


def build(architecture: str, config: Mapping[str, Any]) -> DepthNetwork:
    """A network with random weights; architecture of ARCHITECTURES, config as a network's own `config`."""
    return ARCHITECTURES[architecture](**config)


def architecture_of(network: DepthNetwork) -> str:
    """Its name in ARCHITECTURES."""
    return next(name for name, kind in ARCHITECTURES.items() if type(network) is kind)
