"""The scenes of the demo world: rooms with spheres, boxes and cylinders, each sampled from an integer seed.

The scene of a seed never changes, so a seed is a data set entry. ray_casting.py renders scenes.

Coordinates are in metres, in a right-handed frame at the foot of the camera: x right, y up, z into the room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.10),
    "orange": (0.95, 0.50, 0.08),
    "yellow": (0.95, 0.85, 0.15),
    "green": (0.15, 0.62, 0.20),
    "cyan": (0.15, 0.75, 0.80),
    "blue": (0.12, 0.25, 0.80),
    "purple": (0.50, 0.18, 0.70),
    "pink": (0.95, 0.50, 0.68),
    "white": (0.93, 0.93, 0.93),
    "black": (0.09, 0.09, 0.10),
}
SHAPES = ("sphere", "box", "cylinder")
FLOOR_TINTS: dict[str, tuple[float, float, float]] = {
    "grey": (0.55, 0.55, 0.56),
    "brown": (0.60, 0.43, 0.28),
    "blue": (0.42, 0.52, 0.68),
    "green": (0.45, 0.60, 0.45),
    "red": (0.66, 0.40, 0.37),
}
FLOOR_PATTERNS = ("plain", "checker", "striped")
WALL_TINTS: dict[str, tuple[float, float, float]] = {
    "white": (0.88, 0.88, 0.86),
    "beige": (0.84, 0.76, 0.62),
    "grey": (0.62, 0.63, 0.66),
    "blue": (0.60, 0.70, 0.84),
    "green": (0.66, 0.78, 0.64),
    "pink": (0.86, 0.70, 0.72),
}

NEAR, FAR = 1.5, 12.0
"""Metres at which relative inverse depth is 1 and 0; every surface of the demo world lies between."""


@dataclass(frozen=True)
class Solid:
    """A sphere, an upright box or an upright cylinder that stands on the floor."""

    shape: str
    colour: str
    x: float
    z: float
    radius: float
    """Radius of a sphere or cylinder, half the side of a box."""
    height: float
    yaw: float


@dataclass(frozen=True)
class Scene:
    """Everything that a render depends on. Distances in metres, angles in radians."""

    camera_height: float
    camera_pitch: float
    camera_yaw: float
    focal: float
    """Focal length in units of half the image height."""
    back: float
    left: float | None
    right: float | None
    """Distances of the walls; None where the room has no wall on that side."""
    wall_tint: str
    floor_tint: str
    floor_pattern: str
    tile: float
    light: tuple[float, float, float]
    solids: tuple[Solid, ...]

    @property
    def phrases(self) -> tuple[str, ...]:
        """The parts of the caption: the solids, largest first, then floor and wall."""
        by_size = sorted(self.solids, key=lambda solid: -solid.radius / solid.z)
        return (
            *(f"{solid.colour} {solid.shape}" for solid in by_size),
            f"{self.floor_tint} {self.floor_pattern} floor",
            f"{self.wall_tint} wall",
        )

    @property
    def caption(self) -> str:
        """The prompt that describes the scene in full."""
        return ", ".join(self.phrases)


def sample_scene(seed: int) -> Scene:
    """The scene of a seed: one to four solids that do not touch, walls, floor, light and camera."""
    rng = np.random.default_rng(seed)
    back = rng.uniform(5.0, 8.5)
    walls = rng.integers(3)
    left = rng.uniform(2.2, 3.4) if walls != 0 else None
    right = rng.uniform(2.2, 3.4) if walls != 1 else None

    solids: list[Solid] = []
    wanted = int(rng.choice([1, 2, 3, 4], p=[0.25, 0.35, 0.25, 0.15]))
    for _ in range(200):
        if len(solids) == wanted:
            break
        radius = rng.uniform(0.35, 0.75)
        reach = radius * math.sqrt(2)
        z = rng.uniform(2.6 + reach, min(back - reach, 6.0))
        x = rng.uniform(-0.42, 0.42) * z
        if (left and x < reach - left) or (right and x > right - reach):
            continue
        if any(math.hypot(x - s.x, z - s.z) < 1.5 * (radius + s.radius) for s in solids):
            continue
        shape = str(rng.choice(SHAPES))
        solids.append(
            Solid(
                shape=shape,
                colour=str(rng.choice(list(COLOURS))),
                x=x,
                z=z,
                radius=radius,
                height=2 * radius * (1.0 if shape == "sphere" else rng.uniform(0.7, 1.5)),
                yaw=rng.uniform(0, math.pi / 2),
            )
        )
    return Scene(
        camera_height=rng.uniform(1.35, 1.9),
        camera_pitch=math.radians(rng.uniform(7, 15)),
        camera_yaw=math.radians(rng.uniform(-7, 7)),
        focal=rng.uniform(1.6, 1.9),
        back=back,
        left=left,
        right=right,
        wall_tint=str(rng.choice(list(WALL_TINTS))),
        floor_tint=str(rng.choice(list(FLOOR_TINTS))),
        floor_pattern=str(rng.choice(FLOOR_PATTERNS)),
        tile=rng.uniform(0.55, 0.9),
        light=(rng.uniform(-2.0, 2.0), rng.uniform(3.2, 4.5), rng.uniform(0.0, 2.5)),
        solids=tuple(solids),
    )
