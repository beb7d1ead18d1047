"""What the demo workflows about depth show: depth that is right, forms step by step, and steers."""

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from inner_guidance.tools.template_runs import shortened

SIDE = 256
STEPS = 20
PRIOR_WORKFLOW = "10 Demo - Train a depth prior"
SHORT_TRAINING = ("Depth maps to learn from", "Train Depth Prior", "Training report")
SAVED_PRIOR = "demo_depth_prior_00001_.safetensors"


@pytest.fixture(scope="session")
def pictures(drawn, workflow):
    """First picture of each output node of a workflow, in [0, 1], by title."""

    def read(name):
        titles = {node_id: node["_meta"]["title"] for node_id, node in workflow(name).items()}
        return {titles[node_id]: pixels(files[0]) for node_id, files in drawn(name).items()}

    return read


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) / 255


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two depth pictures."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def columns(sheet: np.ndarray) -> list[list[np.ndarray]]:
    """The cells of a grid of columns, each of three pictures one above the other."""
    sheet = sheet[..., 0]
    assert sheet.shape == (3 * SIDE, 4 * SIDE + 3 * 4)
    return [
        [sheet[row * SIDE : (row + 1) * SIDE, left : left + SIDE] for row in range(3)]
        for left in range(0, sheet.shape[1], SIDE + 4)
    ]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("04 Demo - Depth of an image", "Image, known depth, estimate"),
        ("09 Demo - Train a depth head", "Picture, known depth, what the head reads"),
    ],
)
def test_depth_that_is_read_is_that_of_the_renders(name, title, pictures):
    _, known, read = (np.stack(row) for row in zip(*columns(pictures(name)[title]), strict=True))
    for truth, estimate in zip(known, read, strict=True):
        assert likeness(truth, estimate) > 0.9

    # All rooms have a floor that comes near below. What tells one from another is read too.
    own = [likeness(*pair) for pair in zip(known - known.mean(0), read - read.mean(0), strict=True)]
    assert min(own) > 0.45


def test_a_trained_head_is_saved(drawn, server):
    drawn("09 Demo - Train a depth head")

    names = server.object_info()["InnerLoadDepthHead"]["input"]["required"]["name"][1]["options"]
    assert "demo_depth_head_00001_.safetensors" in names


def made_up_maps(report: np.ndarray) -> list[np.ndarray]:
    """The six depth maps in the bottom row of a prior's training report."""
    side = report.shape[1] // 6
    row = report[-side:, :, 0]
    return [row[:, left : left + side] for left in range(0, 6 * side, side)]


def test_a_prior_learns_what_the_depth_of_a_room_looks_like(drawn, pictures, workflow, server):
    prompt = workflow(PRIOR_WORKFLOW)
    ids = {node["_meta"]["title"]: node_id for node_id, node in prompt.items()}
    known = [
        pixels(png)[..., 0] for png in drawn(PRIOR_WORKFLOW)[ids["All that it learns from: near is white"]]
    ]
    trained = made_up_maps(pictures(PRIOR_WORKFLOW)["Training report"])
    briefly = {ids[name]: prompt[ids[name]] for name in SHORT_TRAINING}
    briefly[ids["Train Depth Prior"]]["inputs"]["steps"] = 10
    untrained = made_up_maps(pixels(server.run(briefly)[ids["Training report"]][0]))

    side = len(trained[0])
    room = np.asarray(Image.fromarray(np.mean(known, axis=0)).resize((side, side)))
    assert min(likeness(depth, room) for depth in trained) > 0.7
    assert max(likeness(depth, room) for depth in untrained) < 0.3


def test_a_saved_prior_guides_as_it_did_when_it_was_new(pictures, workflow, server):
    shown = pictures(PRIOR_WORKFLOW)
    names = server.object_info()["InnerLoadDepthPrior"]["input"]["required"]["name"][1]["options"]
    assert SAVED_PRIOR in names
    prompt = workflow(PRIOR_WORKFLOW)
    ids = {node["_meta"]["title"]: node_id for node_id, node in prompt.items()}
    for title in (*SHORT_TRAINING, "Save Depth Prior", "All that it learns from: near is white"):
        del prompt[ids[title]]
    prompt["loader"] = {"class_type": "InnerLoadDepthPrior", "inputs": {"name": SAVED_PRIOR}}
    prompt[ids["Depth-Aware Guidance (DAG)"]]["inputs"]["depth_prior"] = ["loader", 0]

    loaded = pixels(server.run(prompt)[ids["With the new prior"]][0])

    plain, guided = shown["Without guidance"], shown["With the new prior"]
    assert np.abs(plain - loaded).mean() > 0.005
    assert np.abs(guided - loaded).mean() < 0.1 * np.abs(plain - loaded).mean()


def test_a_name_that_cannot_be_saved_is_refused_before_the_training(workflow, server):
    prompt = workflow(PRIOR_WORKFLOW)
    ids = {node["_meta"]["title"]: node_id for node_id, node in prompt.items()}
    saved = {ids[title]: prompt[ids[title]] for title in (*SHORT_TRAINING[:2], "Save Depth Prior")}
    prompt[ids["Save Depth Prior"]]["inputs"]["filename_prefix"] = "%date:yyyy-MM-dd%"

    answer = server.queue(saved, client="validation")

    assert "prompt_id" not in answer
    (error,) = answer["node_errors"][ids["Save Depth Prior"]]["errors"]
    assert "'%date:yyyy-MM-dd%': ComfyUI fills in %date:...% for its own save nodes only" in error["details"]


def test_depth_is_seen_to_form_one_picture_a_step(drawn, workflow):
    prompt = workflow("03 Demo - Watch depth form")
    (film,) = (number for number, node in prompt.items() if node["class_type"] == "SaveAnimatedWEBP")

    frames = Image.open(io.BytesIO(drawn("03 Demo - Watch depth form")[film][0]))
    frames = [np.asarray(frame.convert("L")) / 255 for frame in ImageSequence.Iterator(frames)]

    assert len(frames) == STEPS
    assert all(frame.shape == (SIDE, SIDE) and frame.std() > 0.05 for frame in frames)
    # It settles: the later a step, the more its depth is like the last one's.
    like_last = [likeness(frame, frames[-1]) for frame in frames]
    early, middle, late = (np.mean(like_last[i : i + 5]) for i in (0, 7, 14))
    assert early < middle < late
    assert late > 0.97


def test_guidance_changes_the_picture_and_its_depth_of_the_same_seed(pictures):
    shown = pictures("06 Demo - Depth-Aware Guidance")

    plain, guided = shown["Without guidance"], shown["With Depth-Aware Guidance"]
    assert plain.shape == guided.shape == (SIDE, SIDE, 3)
    assert np.abs(plain - guided).mean() > 0.005
    for title in ("Depth without guidance", "Depth with guidance"):
        assert shown[title].std() > 0.1


@pytest.mark.parametrize("name", ["05 Demo - Depth-locked restyle", "12 Demo - Depth lock on a transformer"])
def test_depth_follows_that_of_the_other_image(name, pictures):
    shown = pictures(name)

    target, free, locked = (
        shown[title] for title in ("Depth to keep", "Depth without guidance", "Depth that came out")
    )
    assert likeness(target, locked) > likeness(target, free) + 0.03


def test_both_guidances_act_in_one_picture(workflow, server):
    small = {"EmptyLatentImage": {"width": 128, "height": 128}, "KSampler": {"steps": 6}}
    prompt = shortened(workflow("07 Demo - DAG + SAG"), small)
    ids = {node["_meta"]["title"]: node_id for node_id, node in prompt.items()}
    (sag,) = (
        node["inputs"] for node in prompt.values() if node["class_type"] == "InnerSelfAttentionGuidance"
    )
    (dag,) = (node["inputs"] for node in prompt.values() if node["class_type"] == "InnerDepthAwareGuidance")
    drawings = []
    for attention, depth in ((0.0, 0.0), (1.5, 0.0), (0.0, 1.0), (1.5, 1.0)):
        sag |= {"scale": attention}
        dag |= {"consistency_scale": depth, "prior_scale": depth}
        files = server.run(prompt)
        drawings.append(pixels(files[ids["With both guidances"]][0]))

    np.testing.assert_array_equal(drawings[0], pixels(files[ids["Without guidance"]][0]))
    for number, one in enumerate(drawings):
        for other in drawings[:number]:
            assert np.abs(one - other).mean() > 0.003
