"""Limits of a network's configuration.

A configuration from a file is checked before anything is built: a layer takes time and memory even without
weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

# A UNet of Stable Diffusion has 37 places to read; its widest block 1280 channels, 2560 where two are joined.
MOST_TAPS, MOST_CHANNELS = 64, 16384
MOST_LAYERS, WIDEST_LAYER = 16, 4096
LONGEST_NAME = 16


def require_taps(taps: Mapping[str, int]) -> None:
    """Raises ValueError unless these are a few short names, each with a possible number of channels."""
    if not isinstance(taps, Mapping) or not 1 <= len(taps) <= MOST_TAPS:
        raise ValueError(f"taps must be 1 to {MOST_TAPS} names with channels")
    for name, channels in taps.items():
        if not (isinstance(name, str) and len(name) <= LONGEST_NAME and name.isascii() and name.isalnum()):
            raise ValueError(f"the name of a tap must be 1 to {LONGEST_NAME} letters and digits")
        if not _whole(channels, MOST_CHANNELS):
            raise ValueError(f"{name} must have 1 to {MOST_CHANNELS} channels")


def require_branch(branch: str, names: Sequence[str], taps: Mapping[str, int]) -> None:
    """Raises ValueError unless a branch reads some of the taps, each once."""
    if (
        not isinstance(names, list | tuple)
        or not 1 <= len(names) <= len(taps)
        or not all(isinstance(name, str) and name in taps for name in names)
        or len(set(names)) < len(names)
    ):
        raise ValueError(f"{branch} must be some of the taps")


def require_widths(widths: Sequence[int]) -> None:
    """Raises ValueError unless these are the widths of a few layers."""
    if (
        not isinstance(widths, list | tuple)
        or not 1 <= len(widths) <= MOST_LAYERS
        or not all(_whole(width, WIDEST_LAYER) for width in widths)
    ):
        raise ValueError(f"widths must be 1 to {MOST_LAYERS} whole numbers from 1 to {WIDEST_LAYER}")


def _whole(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most
