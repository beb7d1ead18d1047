"""Scenes of the demo world as labelled images: renders, exact depth maps, the names of the main objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..depth_head.metrics import DepthRange
from .ray_casting import render
from .scenes import FAR, NEAR, sample_scene


class LabelledScenes(NamedTuple):
    """Images and depth maps (N, size, size, 3) in [0, 1], near = white; the largest object of each scene."""

    images: Tensor
    depths: Tensor
    main_objects: list[str]


def labelled_scenes(seeds: Iterable[int], size: int) -> LabelledScenes:
    """The scenes of these seeds, `size` pixels square."""
    depth_range = DepthRange(NEAR, FAR)
    images, depths, main_objects = [], [], []
    for seed in seeds:
        scene = sample_scene(seed)
        seen = render(scene, size)
        images.append(seen.rgb.movedim(0, -1))
        depths.append(depth_range.relative(seen.depth)[..., None].expand(-1, -1, 3))
        main_objects.append(scene.phrases[0])
    return LabelledScenes(torch.stack(images), torch.stack(depths), main_objects)
