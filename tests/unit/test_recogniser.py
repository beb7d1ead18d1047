"""demo/recogniser.py: labels against scenes, scores of hand-made answers, the shipped weights on renders."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from inner_guidance.demo import recogniser, train_recogniser
from inner_guidance.demo.examples import JudgeTraining, load_examples
from inner_guidance.demo.progress import read_checkpoint
from inner_guidance.demo.ray_casting import FIRST_SOLID, render
from inner_guidance.demo.recogniser import PAIRS, Recogniser, Recognition, recognise, recognition_scores
from inner_guidance.demo.renders import HELD_OUT, to_uint8
from inner_guidance.demo.scenes import Solid, sample_scene

BLUE_BOX, RED_SPHERE = PAIRS.index(("blue", "box")), PAIRS.index(("red", "sphere"))


def scene_of(*solids):
    return dataclasses.replace(
        sample_scene(0),
        camera_yaw=0.0,
        solids=solids,
        floor_pattern="checker",
        floor_tint="green",
        wall_tint="pink",
    )


FRONT = Solid("box", "blue", x=0.0, z=3.5, radius=0.7, height=1.4, yaw=0.0)
BEHIND = Solid("sphere", "red", x=0.0, z=5.5, radius=0.4, height=0.8, yaw=0.0)


def labels_of(*solids):
    scene = scene_of(*solids)
    return recogniser.scene_labels(scene, render(scene, size=64).surface)


def test_only_visible_solids_are_labelled():
    beside = dataclasses.replace(BEHIND, x=1.5)
    assert labels_of(FRONT, beside)["objects"].nonzero().flatten().tolist() == sorted([RED_SPHERE, BLUE_BOX])
    assert labels_of(FRONT, BEHIND)["objects"].nonzero().flatten().tolist() == [BLUE_BOX]


def test_floor_and_wall_labels():
    labels = labels_of(FRONT)
    assert recogniser.FLOOR_PATTERNS[labels["floor pattern"]] == "checker"
    assert list(recogniser.FLOOR_TINTS)[labels["floor tint"]] == "green"
    assert list(recogniser.WALL_TINTS)[labels["wall tint"]] == "pink"


def test_the_main_solid_covers_most_pixels():
    """A larger solid that stands behind another is not the main one."""
    small = dataclasses.replace(FRONT, z=3.0, radius=0.5, height=1.0)
    large = dataclasses.replace(BEHIND, z=5.0, radius=0.74, height=1.48)
    scene = scene_of(large, small)
    surface = render(scene, size=64).surface
    pixels = recogniser.solid_pixels(scene, surface)
    assert pixels.tolist() == [(surface == FIRST_SOLID).sum(), (surface == FIRST_SOLID + 1).sum()]
    assert recogniser.main_pair(scene, surface) == BLUE_BOX


def test_place_labels_name_the_solid_at_the_centre_of_each_place():
    scene = scene_of(FRONT)
    surface = render(scene, size=recogniser.SIZE).surface
    places = train_recogniser.place_labels(scene, surface)
    assert places.shape == (12, 12)
    for row, column in ((6, 6), (0, 0), (11, 3)):
        on_box = surface[8 * row + 4, 8 * column + 4] == FIRST_SOLID
        assert places[row, column] == (1 + BLUE_BOX if on_box else 0)
    assert set(places.unique().tolist()) == {0, 1 + BLUE_BOX}


def test_scores_of_right_half_right_and_wrong_pictures():
    """A blue box is wanted; seen are a blue box, a blue sphere with a red box, a red sphere, and doubt."""
    chances = torch.full((4, len(PAIRS)), 1e-6)
    chances[0, BLUE_BOX] = 0.9
    chances[1, PAIRS.index(("blue", "sphere"))] = chances[1, PAIRS.index(("red", "box"))] = 0.9
    chances[2, RED_SPHERE] = 0.9
    chances[3, BLUE_BOX] = chances[3, PAIRS.index(("blue", "cylinder"))] = 0.4
    wanted = torch.zeros(4, len(PAIRS))
    wanted[:, BLUE_BOX] = 1
    first_class, second_class = torch.tensor([9.0, 0.0, 0.0]), torch.tensor([0.0, 9.0, 0.0])
    room = torch.stack([first_class, first_class, first_class, second_class])
    seen = Recognition(
        features=torch.zeros(4, 1),
        places=torch.zeros(4, 1, 1, 1),
        logits={"objects": chances.logit()} | dict.fromkeys(recogniser.ROOM_HEADS, room),
    )
    labels = {"objects": wanted} | dict.fromkeys(recogniser.ROOM_HEADS, torch.zeros(4, dtype=torch.long))
    assert recognition_scores(seen, labels, torch.full((4,), BLUE_BOX)) == pytest.approx(
        {
            "main object's colour and shape": 1 / 4,
            "main object's colour": 3 / 4,
            "main object's shape": 2 / 4,
            "objects of the prompt that are found": 1 / 4,
            "found objects that are in the prompt": 1 / 4,
            "floor pattern": 3 / 4,
            "floor tint": 3 / 4,
            "wall tint": 3 / 4,
        }
    )


@pytest.mark.slow
def test_shipped_weights_recognise_held_out_renders(root):
    network = Recogniser().eval()
    network.load_state_dict(load_file(root / "demo" / "weights" / recogniser.RECOGNISER_FILE))
    scenes = [sample_scene(HELD_OUT + 20_000 + number) for number in range(60)]
    renders = [render(scene, size=192) for scene in scenes]
    labels = [
        recogniser.scene_labels(scene, seen.surface) for scene, seen in zip(scenes, renders, strict=True)
    ]
    scores = recognition_scores(
        recognise(network, torch.stack([torch.from_numpy(to_uint8(seen.rgb)) for seen in renders])),
        {head: torch.stack([label[head] for label in labels]) for head in recogniser.HEADS},
        torch.tensor(
            [recogniser.main_pair(scene, seen.surface) for scene, seen in zip(scenes, renders, strict=True)]
        ),
    )
    assert scores["main object's colour and shape"] > 0.95
    assert scores["objects of the prompt that are found"] > 0.9
    assert scores["found objects that are in the prompt"] > 0.9
    assert min(scores[head] for head in recogniser.ROOM_HEADS) > 0.95


@pytest.mark.slow
def test_an_interrupted_training_goes_on_where_it_was(tmp_path):
    """The second call finds its time used up: it neither labels nor trains again."""
    renders, examples, checkpoint = tmp_path / "renders", tmp_path / "examples", tmp_path / "recogniser.pt"
    renders.mkdir()
    pictures = [to_uint8(render(sample_scene(seed), size=64).rgb) for seed in range(4)]
    np.save(renders / "0000000.npy", np.stack(pictures))

    def train():
        return train_recogniser.train_recogniser(
            JudgeTraining(renders, examples, 4, checkpoint, 0.02, "cpu", workers=1, seed=0)
        )

    first = train()
    steps, labelled = read_checkpoint(checkpoint)["step"], (examples / "0000000.npz").stat().st_mtime_ns
    assert steps > 0
    assert load_examples(examples)["objects"].shape == (4, len(PAIRS))

    second = train()
    assert read_checkpoint(checkpoint)["step"] == steps
    assert (examples / "0000000.npz").stat().st_mtime_ns == labelled
    assert all(torch.equal(first[name], second[name]) for name in first)
