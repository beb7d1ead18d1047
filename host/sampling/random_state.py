"""The random numbers that nodes draw within a pass (ToMe, HyperTile): drawn again for a pass like it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def random_state(device: torch.device) -> list[Tensor]:
    """The states of the generators that torch draws from by default: the CPU's, and that of a device."""
    return [generator.get_state() for generator in _generators(device)]


@contextmanager
def drawing_from(state: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Context in which random numbers continue from a state. Afterwards the generators are as before it."""
    before = random_state(device)
    _set(state, device)
    try:
        yield
    finally:
        _set(before, device)


def _set(state: Sequence[Tensor], device: torch.device) -> None:
    for generator, of_generator in zip(_generators(device), state, strict=True):
        generator.set_state(of_generator)


def _generators(device: torch.device) -> list[torch.Generator]:
    of_devices = getattr(getattr(torch, device.type, None), "default_generators", ())
    index = device.index or 0
    return [torch.default_generator, *of_devices[index : index + 1]]
