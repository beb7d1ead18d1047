"""A head's calibration in its file: the entry "calibration" and the tensor of the depth maps."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .calibration import Calibration, LossLevels
from .files import damaged, parse

ENTRY, MAPS = "calibration", "calibration.depth"
MOST_TIMES, MOST_MAPS, LONGEST_SIDE = 16, 64, 2048
# The limit of a time, and of a loss, which is a mean of squares of depths.
LARGEST = 1000


def stored(calibration: Calibration | None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a calibration."""
    if calibration is None:
        return {}, {}
    levels = calibration.consistency
    consistency = None if levels is None else {"means": levels.means, "deviations": levels.deviations}
    described = {"times": calibration.times, "consistency": consistency}
    return {ENTRY: json.dumps(described)}, {MAPS: calibration.depth}


def read_calibration(
    path: Path, metadata: Mapping[str, str], tensors: dict[str, Tensor]
) -> Calibration | None:
    """The calibration of a file, whose maps leave `tensors`; None if it has none.

    Raises ValueError for anything but rising times, finite levels and maps of depth.
    """
    if ENTRY not in metadata:
        return None
    described, depth = parse(path, metadata, ENTRY, dict), tensors.pop(MAPS, None)
    match described:
        case {"times": times, "consistency": None} if _numbers(times):
            levels = None
        case {
            "times": times,
            "consistency": {"means": means, "deviations": deviations},
        } if _numbers(times) and all(_numbers(found, len(times)) for found in (means, deviations)):
            levels = LossLevels(tuple(times), tuple(means), tuple(deviations))
        case _:
            raise damaged(path, f"its {ENTRY} cannot be read")
    if depth is None or not _rises(times) or not _are_maps(depth, len(times)):
        raise damaged(path, f"its {ENTRY} cannot be read")
    # A copy: a view would keep the whole content of the file in memory.
    return Calibration(tuple(times), depth.clone(), levels)


def _numbers(found: Any, count: int | None = None) -> bool:
    """Whether this is a list of `count` numbers from 0 to LARGEST, or of some."""
    return (
        isinstance(found, list)
        and 1 <= len(found) <= MOST_TIMES
        and count in (None, len(found))
        and all(type(number) in (int, float) and 0 <= number <= LARGEST for number in found)
    )


def _rises(times: list[float]) -> bool:
    return all(a < b for a, b in pairwise(times))


def _are_maps(depth: Tensor, times: int) -> bool:
    """Whether this is depth (n, times, h, w) in [0, 1]."""
    if depth.dtype != torch.float16 or depth.ndim != 4 or depth.shape[1] != times:
        return False
    count, _, *sides = depth.shape
    in_bounds = 2 <= count <= MOST_MAPS and all(1 <= side <= LONGEST_SIDE for side in sides)
    return in_bounds and bool(((depth >= 0) & (depth <= 1)).all())
