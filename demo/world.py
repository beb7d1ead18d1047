"""The demo world: rooms with spheres, boxes and cylinders, ray-cast with exact depth.

A scene is drawn from an integer seed and rendered by analytic ray casting. The picture, the depth, the
caption and the object masks of a seed never change, so a seed is a data set entry.

Coordinates are metres in a right-handed frame at the camera's foot: x right, y up, z into the room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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

FLOOR, BACK_WALL, LEFT_WALL, RIGHT_WALL, FIRST_SOLID = range(5)
"""Surface numbers in `Render.surface`; solid k of the scene is FIRST_SOLID + k."""

NEAR, FAR = 1.5, 12.0
"""Metres at which relative inverse depth is 1 and 0; nothing in the demo world is outside."""

AMBIENT, DIFFUSE, SPECULAR = 0.45, 0.70, 0.25
EDGE_CONTRAST = 0.03


@dataclass(frozen=True)
class Solid:
    """A sphere, an upright box or an upright cylinder that stands on the floor."""

    shape: str
    colour: str
    x: float
    z: float
    radius: float
    """Of the sphere or cylinder; half the side of the box."""
    height: float
    yaw: float


@dataclass(frozen=True)
class Scene:
    """Everything that a picture depends on."""

    camera_height: float
    camera_pitch: float
    camera_yaw: float
    focal: float
    """Focal length in units of half the image height."""
    back: float
    left: float | None
    right: float | None
    """Distances of the walls; None where the room is open to that side."""
    wall_tint: str
    floor_tint: str
    floor_pattern: str
    tile: float
    light: tuple[float, float, float]
    solids: tuple[Solid, ...]

    @property
    def phrases(self) -> tuple[str, ...]:
        """What the scene shows, largest solid first, then floor and wall: the parts of its caption."""
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


@dataclass(frozen=True)
class Render:
    """What the camera sees."""

    rgb: Tensor
    """(3, H, W), display values in [0, 1]."""
    depth: Tensor
    """(H, W), metres along the optical axis at the pixel centres."""
    surface: Tensor
    """(H, W), uint8 surface numbers at the pixel centres."""


def sample_scene(seed: int) -> Scene:
    """Draws the scene of a seed: one to four solids that do not touch, walls, floor, light and camera."""
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


def render(scene: Scene, size: int = 256) -> Render:
    """Ray-casts a scene to `size` x `size` pixels; pixels on edges are supersampled 2 x 2."""
    centres = (torch.arange(size) + 0.5) * (2 / size) - 1
    v, u = torch.meshgrid(-centres, centres, indexing="ij")
    rgb, depth, surface = _cast(scene, u.flatten(), v.flatten())
    rgb = rgb.view(size, size, 3)

    edges = _edges(rgb).flatten()
    quarter = 0.5 / size
    samples = [
        _cast(scene, u.flatten()[edges] + du, v.flatten()[edges] + dv)[0]
        for du in (-quarter, quarter)
        for dv in (-quarter, quarter)
    ]
    rgb.view(-1, 3)[edges] = torch.stack(samples).mean(0)
    return Render(
        rgb=rgb.permute(2, 0, 1).contiguous(),
        depth=depth.view(size, size),
        surface=surface.view(size, size).to(torch.uint8),
    )


def _edges(rgb: Tensor) -> Tensor:
    """(H, W) mask of the pixels whose colour differs visibly from a direct neighbour's."""
    edges = torch.zeros(rgb.shape[:2], dtype=torch.bool)
    across = (rgb[:, 1:] - rgb[:, :-1]).abs().amax(-1) > EDGE_CONTRAST
    down = (rgb[1:] - rgb[:-1]).abs().amax(-1) > EDGE_CONTRAST
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return edges


def _cast(scene: Scene, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Colour (P, 3), depth (P,) and surface (P,) seen through the image points (u, v) in [-1, 1].

    Ray directions have length 1 along the optical axis, so the ray parameter t is the depth.
    """
    origin = torch.tensor([0.0, scene.camera_height, 0.0])
    direction = torch.stack([u / scene.focal, v / scene.focal, torch.ones_like(u)], -1) @ _camera_axes(scene)

    t = torch.stack([_plane(origin, direction, *plane) for plane in _planes(scene)])
    t = torch.cat([t, *(_solid(solid, origin, direction)[None] for solid in scene.solids)])
    depth, surface = t.min(0)
    point = origin + depth[:, None] * direction

    albedo, normal = _surfaces(scene, surface, point)
    to_light = torch.tensor(scene.light) - point
    distance = to_light.norm(dim=-1, keepdim=True)
    lit = torch.ones_like(depth)
    for solid in scene.solids:
        lit[_solid(solid, point + 1e-3 * normal, to_light) < 1] = 0
    to_light = to_light / distance
    halfway = torch.nn.functional.normalize(
        to_light - direction / direction.norm(dim=-1, keepdim=True), dim=-1
    )
    gloss = (surface >= FIRST_SOLID) * SPECULAR * (normal * halfway).sum(-1).clamp(min=0) ** 30
    # The ambient part is brighter on faces that look up, so that unlit sides still read as sides.
    ambient = AMBIENT * (0.85 + 0.15 * normal[:, 1])
    diffuse = (
        DIFFUSE * (normal * to_light).sum(-1).clamp(min=0) * (4.5 / (distance[:, 0] + 1.0)).clamp(max=1.1)
    )
    rgb = albedo * (ambient + diffuse * lit)[:, None] + (gloss * lit)[:, None]
    return rgb.clamp(0, 1), depth, surface


def _camera_axes(scene: Scene) -> Tensor:
    """(3, 3), rows: the camera's right, up and forward directions."""
    sin_yaw, cos_yaw = math.sin(scene.camera_yaw), math.cos(scene.camera_yaw)
    sin_pitch, cos_pitch = math.sin(scene.camera_pitch), math.cos(scene.camera_pitch)
    return torch.tensor(
        [
            [cos_yaw, 0.0, -sin_yaw],
            [sin_yaw * sin_pitch, cos_pitch, cos_yaw * sin_pitch],
            [sin_yaw * cos_pitch, -sin_pitch, cos_yaw * cos_pitch],
        ]
    )


def _planes(scene: Scene) -> list[tuple[int, float]]:
    """Axis and position of floor, back, left and right wall; an open side is infinitely far."""
    left = -scene.left if scene.left else -math.inf
    right = scene.right if scene.right else math.inf
    return [(1, 0.0), (2, scene.back), (0, left), (0, right)]


def _plane(origin: Tensor, direction: Tensor, axis: int, position: float) -> Tensor:
    t = (position - origin[axis]) / direction[:, axis]
    return torch.where(t > 0, t, math.inf)


def _solid(solid: Solid, origin: Tensor, direction: Tensor) -> Tensor:
    """(P,) smallest positive ray parameter at which the rays enter a solid, infinity where they miss."""
    o, d = _local(solid, origin, point=True), _local(solid, direction, point=False)
    if solid.shape == "sphere":
        near, far = _quadratic((d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - solid.radius**2)
    elif solid.shape == "cylinder":
        sides = [0, 2]
        near, far = _quadratic(
            (d[..., sides] ** 2).sum(-1),
            (o[..., sides] * d[..., sides]).sum(-1),
            (o[..., sides] ** 2).sum(-1) - solid.radius**2,
        )
        bottom, top = _slab(o[..., 1], d[..., 1], solid.height / 2)
        near, far = torch.maximum(near, bottom), torch.minimum(far, top)
    else:
        half = torch.tensor([solid.radius, solid.height / 2, solid.radius])
        near, far = _slab(o, d, half)
        near, far = near.amax(-1), far.amin(-1)
    return torch.where((near < far) & (near > 0), near, math.inf)


def _local(solid: Solid, vector: Tensor, point: bool) -> Tensor:
    """Moves points or directions (..., 3) into the solid's own frame, its centre at the origin."""
    if point:
        vector = vector - torch.tensor([solid.x, solid.height / 2, solid.z])
    if solid.shape != "box":
        return vector
    sin, cos = math.sin(solid.yaw), math.cos(solid.yaw)
    return vector @ torch.tensor([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])


def _quadratic(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Both roots of a t^2 + 2 b t + c, (inf, -inf) where there are none."""
    discriminant = b * b - a * c
    root = discriminant.clamp(min=0).sqrt()
    hit = discriminant > 0
    return torch.where(hit, (-b - root) / a, math.inf), torch.where(hit, (-b + root) / a, -math.inf)


def _slab(origin: Tensor, direction: Tensor, half: Tensor | float) -> tuple[Tensor, Tensor]:
    """Ray parameters at which rays enter and leave the space between -half and half."""
    inverse = 1 / torch.where(direction.abs() < 1e-9, 1e-9, direction)
    first, second = (-half - origin) * inverse, (half - origin) * inverse
    return torch.minimum(first, second), torch.maximum(first, second)


def _surfaces(scene: Scene, surface: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Albedo (P, 3) and outward normal (P, 3) at points on the numbered surfaces."""
    albedo = torch.tensor(WALL_TINTS[scene.wall_tint]).repeat(len(point), 1)
    normals = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    normal = normals[surface.clamp(max=RIGHT_WALL)]

    on_floor = surface == FLOOR
    cell = torch.floor(point[on_floor] / scene.tile)
    if scene.floor_pattern == "checker":
        dark = (cell[:, 0] + cell[:, 2]) % 2
    elif scene.floor_pattern == "striped":
        dark = cell[:, 0] % 2
    else:
        dark = torch.zeros(len(cell))
    albedo[on_floor] = torch.tensor(FLOOR_TINTS[scene.floor_tint]) * (1.25 - 0.65 * dark[:, None])

    for number, solid in enumerate(scene.solids, FIRST_SOLID):
        on = surface == number
        albedo[on] = torch.tensor(COLOURS[solid.colour])
        normal[on] = _normal(solid, point[on])
    return albedo, normal


def _normal(solid: Solid, point: Tensor) -> Tensor:
    p = _local(solid, point, point=True)
    if solid.shape == "sphere":
        return p / solid.radius
    if solid.shape == "cylinder":
        side = p / solid.radius * torch.tensor([1.0, 0.0, 1.0])
        cap = torch.tensor([0.0, 1.0, 0.0])
        return torch.where((p[:, 1] > solid.height / 2 - 1e-3)[:, None], cap, side)
    scaled = p / torch.tensor([solid.radius, solid.height / 2, solid.radius])
    axis = scaled.abs().argmax(-1)
    face = torch.zeros_like(p).scatter_(1, axis[:, None], scaled.gather(1, axis[:, None]).sign())
    sin, cos = math.sin(solid.yaw), math.cos(solid.yaw)
    return face @ torch.tensor([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])
