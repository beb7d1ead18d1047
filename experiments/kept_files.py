"""Files of a work folder: what determines them, and writing them whole."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def checksum(path: Path) -> str:
    """The first 12 digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def save(path: Path, **tensors: Tensor) -> None:
    """Writes a file of the work folder. An interruption leaves no file under that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{time.monotonic_ns()}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished)
    unfinished.replace(path)
