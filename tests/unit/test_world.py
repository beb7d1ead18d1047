"""demo/scenes.py, ray_casting.py: exact depth, against geometry written here in float64; captions, seeds."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from inner_guidance.demo import ray_casting
from inner_guidance.demo.ray_casting import BACK_WALL, FIRST_SOLID, FLOOR, RIGHT_WALL, render
from inner_guidance.demo.scenes import COLOURS, SHAPES, Scene, Solid, sample_scene

SEEDS = range(12)


PLAIN = Scene(
    camera_height=1.5,
    camera_pitch=0.0,
    camera_yaw=0.0,
    focal=1.75,
    back=7.0,
    left=None,
    right=3.0,
    wall_tint="white",
    floor_tint="grey",
    floor_pattern="plain",
    tile=0.7,
    light=(0.5, 4.0, 1.0),
    solids=(),
)
"""An empty room, seen level and straight ahead."""


def scene(*solids, **changes):
    return dataclasses.replace(PLAIN, solids=solids, **changes)


def rays(scene, size):
    """Directions (size, size, 3) of unit length along the optical axis, in float64."""
    centres = (np.arange(size) + 0.5) / size * 2 - 1
    u, v = np.meshgrid(centres, -centres)
    camera = np.stack([u / scene.focal, v / scene.focal, np.ones_like(u)], -1)
    pitch, yaw = scene.camera_pitch, scene.camera_yaw
    tilt = np.array(
        [[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]]
    )
    turn = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    return camera @ (turn @ tilt).T


def distances(scene, p):
    """Signed distance of points (..., 3) to every surface, positive in free air: (surfaces, ...)."""
    open_side = np.full(p.shape[:-1], np.inf)
    found = [
        p[..., 1],
        scene.back - p[..., 2],
        p[..., 0] + scene.left if scene.left else open_side,
        scene.right - p[..., 0] if scene.right else open_side,
    ]
    for solid in scene.solids:
        x, y, z = np.moveaxis(p - np.array([solid.x, solid.height / 2, solid.z]), -1, 0)
        if solid.shape == "sphere":
            found.append(np.sqrt(x * x + y * y + z * z) - solid.radius)
        elif solid.shape == "cylinder":
            found.append(outside(np.hypot(x, z) - solid.radius, abs(y) - solid.height / 2))
        else:
            turned = (x + 1j * z) * np.exp(1j * solid.yaw)
            sides = (abs(turned.real) - solid.radius, abs(turned.imag) - solid.radius)
            found.append(outside(*sides, abs(y) - solid.height / 2))
    return np.stack(found)


def outside(*excess):
    """Distance from how far a point is beyond each pair of faces."""
    excess = np.stack(excess)
    return np.linalg.norm(excess.clip(min=0), axis=0) + excess.max(0).clip(max=0)


def test_sphere_straight_ahead_floor_and_back_wall():
    size, radius, z = 65, 1.5, 4.0
    made = render(scene(Solid("sphere", "red", 0.0, z, radius, 2 * radius, 0.0)), size)
    d = rays(PLAIN, size)
    # |t d - c|^2 = r^2 with the centre c at (0, 0, z) from the camera, which stands as high as the centre
    a, b, c = (d * d).sum(-1), z * d[..., 2], z * z - radius**2
    with np.errstate(invalid="ignore", divide="ignore"):
        sphere = (b - np.sqrt(b * b - a * c)) / a
        floor = np.where(d[..., 1] < 0, -1.5 / d[..., 1], np.inf)
        right = np.where(d[..., 0] > 0, 3.0 / d[..., 0], np.inf)
    expected = np.fmin(np.minimum(np.minimum(floor, right), 7.0), sphere)

    assert made.depth[32, 32].item() == pytest.approx(z - radius, abs=1e-5)
    assert made.depth[0, 0].item() == pytest.approx(7.0, abs=1e-5)
    np.testing.assert_allclose(made.depth.numpy(), expected, rtol=1e-4)


def test_pitch_looks_down_and_yaw_to_the_right():
    pitch, yaw = math.radians(12), math.radians(5)
    made = render(scene(camera_pitch=pitch), 65)
    turned = render(scene(camera_yaw=yaw), 65)

    assert made.depth[32, 32].item() == pytest.approx(7.0 / math.cos(pitch), rel=1e-5)
    assert made.depth[-1, 32].item() == pytest.approx(
        1.5 / (math.sin(pitch) + 64 / 65 / 1.75 * math.cos(pitch)), rel=1e-5
    )
    assert turned.depth[32, 32].item() == pytest.approx(7.0 / math.cos(yaw), rel=1e-5)
    assert (turned.surface == RIGHT_WALL).sum() > (render(scene(), 65).surface == RIGHT_WALL).sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_depth_is_where_the_ray_first_leaves_free_air(seed):
    """Every pixel's point lies on the surface it is said to show, and the way to it is free."""
    drawn, size = sample_scene(seed), 32
    made = render(drawn, size)
    depth = made.depth.double().numpy()[..., None]
    eye = np.array([0.0, drawn.camera_height, 0.0])
    d = rays(drawn, size)

    at_surface = distances(drawn, eye + depth * d)
    own = np.take_along_axis(at_surface, made.surface.numpy().astype(int)[None], 0)[0]
    np.testing.assert_allclose(own, 0, atol=1e-4)
    for part in np.linspace(0.01, 0.999, 150):
        assert distances(drawn, eye + part * depth * d).min() > -1e-4


def test_sampled_scenes_use_every_shape():
    """Or the test above would not have looked at all of them."""
    seen = {solid.shape for seed in SEEDS for solid in sample_scene(seed).solids}

    assert seen == {"sphere", "box", "cylinder"}


def test_scene_of_a_seed_never_changes():
    """Written down when the model was trained on it: another scene here makes the training data another."""
    drawn = sample_scene(7)

    assert drawn == sample_scene(7)
    assert drawn != sample_scene(8)
    assert drawn.caption == "orange cylinder, cyan cylinder, green checker floor, blue wall"
    np.testing.assert_allclose(
        render(drawn, 8).depth.diagonal()[2:6], [6.965469, 7.169728, 3.289975, 3.089677], rtol=1e-4
    )


def test_render_is_repeatable_and_in_range():
    for seed in SEEDS:
        one, other = render(sample_scene(seed), 48), render(sample_scene(seed), 48)

        assert one.rgb.shape == (3, 48, 48)
        assert torch.equal(one.rgb, other.rgb)
        assert torch.equal(one.depth, other.depth)
        assert 0 <= one.rgb.min() <= one.rgb.max() <= 1
        assert 1.5 < one.depth.min() < one.depth.max() < 11


def test_solids_stand_apart_and_inside_the_room():
    for seed in range(1000):
        drawn = sample_scene(seed)
        # the circle around a box's corners is the widest that a solid can be
        reach = [(s.x, s.z, s.radius * (math.sqrt(2) if s.shape == "box" else 1)) for s in drawn.solids]

        assert 1 <= len(reach) <= 4
        for number, (x, z, r) in enumerate(reach):
            assert z + r <= drawn.back
            assert drawn.left is None or x - r >= -drawn.left
            assert drawn.right is None or x + r <= drawn.right
            assert all(math.dist((x, z), (a, b)) > r + q for a, b, q in reach[:number])


def test_caption_names_the_largest_solid_first():
    near = Solid("box", "blue", -0.8, 3.0, 0.5, 1.0, 0.3)
    far = Solid("sphere", "red", 0.8, 5.0, 0.5, 1.0, 0.0)

    assert scene(far, near).caption == "blue box, red sphere, grey plain floor, white wall"


def test_surface_numbers_name_what_the_scene_has():
    for seed in SEEDS:
        drawn = sample_scene(seed)
        shown = set(render(drawn, 48).surface.unique().tolist())

        assert shown <= {0, 1, *(2,) * bool(drawn.left), *(3,) * bool(drawn.right)} | set(
            range(FIRST_SOLID, FIRST_SOLID + len(drawn.solids))
        )
        assert {FLOOR, BACK_WALL} <= shown


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", [name for name in COLOURS if name not in ("white", "black")])
def test_masked_pixels_have_the_colour_of_the_caption(shape, colour):
    made = render(scene(Solid(shape, colour, 0.3, 4.0, 0.6, 1.2, 0.4)), 64)
    mask = made.surface == FIRST_SOLID
    # shadow and distance scale a colour, the highlight whitens it: compare directions, by the median
    seen = made.rgb[:, mask].double().numpy()
    seen = np.median(seen / np.linalg.norm(seen, axis=0), axis=1)
    likeness = {name: seen @ rgb / np.linalg.norm(rgb) for name, rgb in COLOURS.items()}

    assert mask.sum() > 100
    assert max(likeness, key=likeness.get) == colour


def test_black_and_white_differ_in_brightness_alone():
    light, dark = (
        render(scene(Solid("box", colour, 0.3, 4.0, 0.6, 1.2, 0.4)), 64) for colour in ("white", "black")
    )
    mask = light.surface == FIRST_SOLID

    assert torch.equal(mask, dark.surface == FIRST_SOLID)
    assert light.rgb[:, mask].mean() > 5 * dark.rgb[:, mask].mean()


def test_shadow_falls_away_from_the_light():
    ball = Solid("sphere", "red", 0.0, 4.0, 0.5, 1.0, 0.0)
    lit_from_left = render(scene(ball, light=(-2.0, 4.0, 2.5)), 64)
    bare = render(scene(light=(-2.0, 4.0, 2.5)), 64)
    floor = lit_from_left.surface == FLOOR
    shadow = floor & ((bare.rgb - lit_from_left.rgb).mean(0) > 0.1)

    assert shadow.sum() > 20
    assert shadow.nonzero()[:, 1].double().mean() > 32


def test_only_pixels_on_edges_are_supersampled():
    size, drawn = 64, sample_scene(3)
    centres = (torch.arange(size) + 0.5) * (2 / size) - 1
    v, u = torch.meshgrid(-centres, centres, indexing="ij")

    def cast(du, dv):
        return (
            ray_casting._cast(drawn, (u + du).flatten(), (v + dv).flatten())[0]
            .view(size, size, 3)
            .permute(2, 0, 1)
        )

    plain = cast(0, 0)
    edges = torch.zeros(size, size, dtype=torch.bool)
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        shifted = torch.roll(plain, (dy, dx), (1, 2))
        differs = (plain - shifted).abs().amax(0) > ray_casting.EDGE_CONTRAST
        inside = torch.ones(size, size, dtype=torch.bool)
        inside[0 if dy == 1 else -1, :] &= dy == 0
        inside[:, 0 if dx == 1 else -1] &= dx == 0
        edges |= differs & inside
    four = torch.stack([cast(du, dv) for du in (-0.5 / size, 0.5 / size) for dv in (-0.5 / size, 0.5 / size)])
    made = render(drawn, size).rgb

    assert 0.02 < edges.double().mean() < 0.5
    assert torch.equal(made[:, ~edges], plain[:, ~edges])
    torch.testing.assert_close(made[:, edges], four.mean(0)[:, edges])
    assert not torch.allclose(made[:, edges], plain[:, edges])


def test_depth_does_not_depend_on_the_colours():
    drawn = sample_scene(5)
    repainted = dataclasses.replace(drawn, floor_tint="red", floor_pattern="checker", light=(0.0, 4.0, 0.0))

    assert torch.equal(render(drawn, 32).depth, render(repainted, 32).depth)
