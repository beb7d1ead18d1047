"""Renders scenes of the demo world by analytic ray casting: picture, exact depth and surface numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .scenes import COLOURS, FLOOR_TINTS, WALL_TINTS, Scene, Solid

FLOOR, BACK_WALL, LEFT_WALL, RIGHT_WALL, FIRST_SOLID = range(5)
"""Surface numbers in `Render.surface`; solid k of the scene is FIRST_SOLID + k."""

AMBIENT, DIFFUSE, SPECULAR = 0.45, 0.70, 0.25
EDGE_CONTRAST = 0.03


@dataclass(frozen=True)
class Render:
    """A rendered scene."""

    rgb: Tensor
    """(3, H, W), display values in [0, 1]."""
    depth: Tensor
    """(H, W), metres along the optical axis at the pixel centres."""
    surface: Tensor
    """(H, W), uint8 surface numbers at the pixel centres."""


def render(scene: Scene, size: int = 256) -> Render:
    """A scene in `size` x `size` pixels. Pixels on edges are supersampled 2 x 2."""
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
    """(H, W) mask of the pixels that visibly differ in colour from a direct neighbour."""
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

    t = torch.stack([_hit_plane(origin, direction, *plane) for plane in _planes(scene)])
    t = torch.cat([t, *(_hit_solid(solid, origin, direction)[None] for solid in scene.solids)])
    depth, surface = t.min(0)
    point = origin + depth[:, None] * direction

    albedo, normal = _albedo_and_normal(scene, surface, point)
    to_light = torch.tensor(scene.light) - point
    distance = to_light.norm(dim=-1, keepdim=True)
    lit = torch.ones_like(depth)
    for solid in scene.solids:
        lit[_hit_solid(solid, point + 1e-3 * normal, to_light) < 1] = 0
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
    """Axis and position of floor, back, left and right wall; a missing wall is infinitely far."""
    left = -scene.left if scene.left else -math.inf
    right = scene.right if scene.right else math.inf
    return [(1, 0.0), (2, scene.back), (0, left), (0, right)]


def _hit_plane(origin: Tensor, direction: Tensor, axis: int, position: float) -> Tensor:
    """(P,) positive ray parameter at which the rays meet an axis-aligned plane, infinity where they miss."""
    t = (position - origin[axis]) / direction[:, axis]
    return torch.where(t > 0, t, math.inf)


def _hit_solid(solid: Solid, origin: Tensor, direction: Tensor) -> Tensor:
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
    """Both roots of a t^2 + 2 b t + c = 0, (inf, -inf) where there are none."""
    discriminant = b * b - a * c
    root = discriminant.clamp(min=0).sqrt()
    hit = discriminant > 0
    return torch.where(hit, (-b - root) / a, math.inf), torch.where(hit, (-b + root) / a, -math.inf)


def _slab(origin: Tensor, direction: Tensor, half: Tensor | float) -> tuple[Tensor, Tensor]:
    """Ray parameters at which rays enter and leave the space between -half and half."""
    inverse = 1 / torch.where(direction.abs() < 1e-9, 1e-9, direction)
    first, second = (-half - origin) * inverse, (half - origin) * inverse
    return torch.minimum(first, second), torch.maximum(first, second)


def _albedo_and_normal(scene: Scene, surface: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
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
    """(P, 3) outward normal of a solid at points on its surface."""
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
