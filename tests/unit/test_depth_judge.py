"""demo/depth_judge.py: labels against scenes, mirroring, training that goes on, the shipped weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from inner_guidance.demo import depth_judge, train_depth_judge
from inner_guidance.demo.depth_judge import GRID, SURFACES, DepthJudge, judge
from inner_guidance.demo.examples import JudgeTraining
from inner_guidance.demo.progress import read_checkpoint
from inner_guidance.demo.ray_casting import FIRST_SOLID, LEFT_WALL, RIGHT_WALL, render
from inner_guidance.demo.renders import HELD_OUT, to_uint8
from inner_guidance.demo.scenes import FAR, NEAR, sample_scene
from inner_guidance.demo.train_depth_judge import MIXED, surface_label, swap_sides
from inner_guidance.depth_head.metrics import DepthRange, measure


def test_labels_of_cells():
    surface = torch.full((2 * GRID, 2 * GRID), LEFT_WALL, dtype=torch.uint8)
    surface[:2, :2] = FIRST_SOLID + 2
    surface[2, 2] = 0

    label = surface_label(surface)

    assert label[0, 0] == FIRST_SOLID == SURFACES - 1
    assert label[1, 1] == MIXED
    assert (label == LEFT_WALL).sum() == GRID * GRID - 2


def test_a_mirrored_scene_has_its_walls_on_the_other_side():
    """The labels of a mirrored picture are the mirrored labels, with left and right exchanged."""
    scene = sample_scene(
        next(seed for seed in range(50) if sample_scene(seed).left and sample_scene(seed).right)
    )
    surface = surface_label(render(scene, size=2 * GRID).surface)
    pictures = torch.zeros(64, 3, depth_judge.SIZE, depth_judge.SIZE)
    pictures[..., : depth_judge.SIZE // 2] = 1.0
    labels = {"depth": torch.zeros(64, 1, GRID, GRID), "surfaces": surface.expand(64, -1, -1)}

    shown, found = train_depth_judge._augment(pictures, labels, np.random.default_rng(0))

    mirrored = shown[:, 0, 64, 0] < 0.5
    assert 16 < mirrored.sum() < 48
    expected = surface.flip(-1)
    expected = torch.where(
        expected == LEFT_WALL, RIGHT_WALL, torch.where(expected == RIGHT_WALL, LEFT_WALL, expected)
    )
    assert (found["surfaces"][mirrored] == expected).all()
    assert (found["surfaces"][~mirrored] == surface).all()
    assert not torch.equal(expected, surface)
    assert torch.equal(swap_sides(swap_sides(surface)), surface)


@pytest.mark.slow
def test_an_interrupted_training_goes_on_where_it_was(tmp_path):
    """The second call finds its time used up: it neither labels nor trains again."""
    renders, examples, checkpoint = tmp_path / "renders", tmp_path / "examples", tmp_path / "judge.pt"
    renders.mkdir()
    pictures = [to_uint8(render(sample_scene(seed), size=64).rgb) for seed in range(4)]
    np.save(renders / "0000000.npy", np.stack(pictures))

    def train():
        return train_depth_judge.train_depth_judge(
            JudgeTraining(renders, examples, 4, checkpoint, 0.02, "cpu", workers=1, seed=0)
        )

    first = train()
    steps, labelled = read_checkpoint(checkpoint)["step"], (examples / "0000000.npz").stat().st_mtime_ns
    assert steps > 0

    second = train()

    assert read_checkpoint(checkpoint)["step"] == steps
    assert (examples / "0000000.npz").stat().st_mtime_ns == labelled
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_shipped_weights_see_depth_and_surfaces_of_held_out_renders(root):
    network = DepthJudge().eval()
    network.load_state_dict(load_file(root / "demo" / "weights" / depth_judge.DEPTH_JUDGE_FILE))
    scenes = [sample_scene(HELD_OUT + 20_000 + number) for number in range(40)]
    renders = [render(scene, size=depth_judge.SIZE) for scene in scenes]
    truth = torch.stack([depth_judge.depth_label(seen.depth) for seen in renders])
    surfaces = torch.stack([surface_label(render(scene, size=2 * GRID).surface) for scene in scenes])

    seen = judge(network, torch.stack([torch.from_numpy(to_uint8(one.rgb)) for one in renders]))

    metrics = measure(seen.depth, truth, DepthRange(NEAR, FAR))
    assert metrics.abs_rel < 0.08
    assert metrics.delta1 > 0.95
    hits = seen.surfaces.argmax(1) == surfaces
    assert hits[surfaces != MIXED].float().mean() > 0.97
