"""What `make demo` draws."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from inner_guidance.tools.demo import (
    LOOK_FOR,
    REMARKS,
    SCENES,
    WORKFLOWS,
    draw,
    for_scene,
    node_titled,
    steps_of,
)
from inner_guidance.tools.template_runs import shortened

PLAIN, GUIDED = "No prompt, without guidance", "No prompt, with Self-Attention Guidance"
WITHOUT_PROMPT = "01 Demo - Self-Attention Guidance"
STEPS = 5


def read(root, name):
    return json.loads((root / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


def brief(prompt, steps=STEPS):
    """One image of a few steps."""
    return shortened(prompt, {"KSampler": {"steps": steps}, "EmptyLatentImage": {"batch_size": 1}})


@pytest.fixture
def workflow(root):
    return brief(read(root, WITHOUT_PROMPT))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)


def titles(prompt):
    return {node["_meta"]["title"] for node in prompt.values()}


def sag_node(prompt):
    (node,) = (node for node in prompt.values() if node["class_type"] == "InnerSelfAttentionGuidance")
    return node["inputs"]


def test_draws_each_scene_without_and_with_guidance_and_counts_its_steps(server, workflow):
    prompt = for_scene(workflow, *SCENES[0])
    with tqdm(total=sum(steps_of(prompt).values()), disable=False, leave=False) as bar:
        pictures = draw(server, prompt, bar)

        assert bar.n == bar.total == 2 * STEPS
    assert list(pictures) == [PLAIN, GUIDED]
    plain, guided = pixels(pictures[PLAIN]), pixels(pictures[GUIDED])
    assert plain.shape == guided.shape == (256, 256, 3)
    assert np.abs(plain - guided).mean() > 0.5


def test_steps_that_the_host_had_in_its_cache_count_as_done(server, workflow):
    prompt = for_scene(workflow, *SCENES[0])
    for _ in range(2):
        with tqdm(total=sum(steps_of(prompt).values()), disable=False, leave=False) as bar:
            draw(server, prompt, bar)

            assert bar.n == bar.total


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_of_the_sheet_take_prompt_and_seed(name, root):
    prompt = for_scene(read(root, name), "red sphere", 7, 1_234_567)

    values = [value for node in prompt.values() for value in node["inputs"].values()]
    assert ("red sphere" in values) == (name != WITHOUT_PROMPT)
    assert 7 in values
    assert (1_234_567 in values) == ("Depth to keep" in titles(prompt))
    assert any(node["class_type"] == "SaveImage" for node in prompt.values())


def test_rows_that_the_reader_is_sent_to_are_in_the_sheet(root):
    prompts = [read(root, name) for name in WORKFLOWS]
    rows = {
        node["_meta"]["title"]
        for prompt in prompts
        for node in prompt.values()
        if node["class_type"] == "SaveImage"
    }

    named = re.findall(r'"(.+?)"', LOOK_FOR)
    assert named
    assert {*named, *REMARKS} <= rows


def test_scale_zero_draws_the_plain_picture(server, workflow):
    prompt = for_scene(workflow, *SCENES[0])
    sag_node(prompt)["scale"] = 0.0
    with tqdm(disable=True) as bar:
        pictures = draw(server, prompt, bar)

    np.testing.assert_array_equal(pixels(pictures[PLAIN]), pixels(pictures[GUIDED]))


def test_seed_and_prompt_reach_the_picture(server, root):
    workflow = brief(read(root, "06 Demo - Depth-Aware Guidance"))
    text, seed, depth_of = SCENES[0]
    with tqdm(disable=True) as bar:
        first, other_seed, other_text = (
            pixels(draw(server, for_scene(workflow, *scene), bar)["Without guidance"])
            for scene in ((text, seed, depth_of), (text, seed + 1, depth_of), (SCENES[1][0], seed, depth_of))
        )

    assert np.abs(first - other_seed).mean() > 2
    assert np.abs(first - other_text).mean() > 2


def test_scenes_use_words_the_model_knows(server, root):
    workflow = brief(read(root, "06 Demo - Depth-Aware Guidance"), steps=1)
    log = server.log.read_text(encoding="utf-8", errors="replace")
    with tqdm(disable=True) as bar:
        for scene in SCENES:
            draw(server, for_scene(workflow, *scene), bar)

    assert "does not know" not in server.log.read_text(encoding="utf-8", errors="replace")[len(log) :]


def test_a_node_that_fails_is_named_with_the_hosts_own_words(server, workflow):
    prompt = for_scene(workflow, *SCENES[0])
    sag_node(prompt)["blocks"] = "nowhere"

    with pytest.raises(Exception, match=r"InnerSelfAttentionGuidance \(node 9\) failed: .*nowhere"):
        server.run(prompt)


def test_a_prompt_that_is_refused_names_its_faults(server, workflow):
    prompt = for_scene(workflow, *SCENES[0])
    node_titled(prompt, "Sample with guidance")["cfg"] = "high"

    with pytest.raises(Exception, match=r"refused the prompt: .*\n.*KSampler \(node 10\): .*cfg"):
        server.run(prompt)
