"""The workflows in ComfyUI's own page, and what the nodes show there while a sampler runs."""

import json
from pathlib import Path

import pytest

from inner_guidance.tests.support.page_checks import errors_of, overlaps

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
LOAD = "async workflow => { await window.app.loadGraphData(workflow); }"
SHOWN = "type => window.app.graph.nodes.some(node => node.type === type && node.imgs?.length)"
# Mean and standard deviation of each colour of the picture on a node, 0 to 255.
SEEN = """type => {
    const [picture] = window.app.graph.nodes.find(node => node.type === type).imgs;
    const canvas = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight);
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    return [0, 1, 2].map(colour => {
        const values = Array.from(data).filter((_, i) => i % 4 === colour);
        const mean = values.reduce((a, b) => a + b) / values.length;
        return [mean, Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length)];
    });
}"""
END_OF_RUN = """async milliseconds => {
    for (const ends = Date.now() + milliseconds; Date.now() < ends;) {
        const { queue_running, queue_pending } = await (await fetch("/queue")).json();
        if (!queue_running.length && !queue_pending.length) return;
        await new Promise(later => setTimeout(later, 100));
    }
    throw new Error("The run did not end.");
}"""
RUN_MILLISECONDS = 120_000


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def wiring(prompt):
    """The nodes of an API prompt, and what their inputs are linked to."""
    return {
        number: (node["class_type"], {k: v for k, v in node["inputs"].items() if isinstance(v, list)})
        for number, node in prompt.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_as_it_was_written(name, page):
    written = read(name)
    with errors_of(page) as errors:
        page.evaluate(LOAD, written)
        opened = page.evaluate("() => window.app.graph.serialize()")

    assert not errors
    assert not overlaps(page, nodes_2=False)
    assert not page.evaluate(
        "() => window.app.graph.nodes.map(node => node.type).filter(t => !LiteGraph.registered_node_types[t])"
    )
    assert sorted(link[0] for link in opened["links"]) == sorted(link[0] for link in written["links"])
    nodes = {node["id"]: node for node in opened["nodes"]}
    assert nodes.keys() == {node["id"] for node in written["nodes"]}
    for node in written["nodes"]:
        assert nodes[node["id"]].get("widgets_values") == node.get("widgets_values"), node["type"]


@pytest.mark.parametrize("name", NAMES)
def test_the_page_wires_a_workflow_as_its_twin(name, page):
    twin = json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))
    page.evaluate(LOAD, read(name))

    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")

    assert wiring(prompt) == wiring(twin)


@pytest.mark.parametrize(
    ("name", "node", "grey"),
    [
        ("06 Demo - Depth-Aware Guidance", "InnerDepthAwareGuidance", True),
        ("03 Demo - Watch depth form", "InnerRecordFeatures", True),
        ("02 Demo - See what the model sees", "InnerRecordAttention", False),
    ],
)
def test_a_node_shows_what_it_reads_while_a_sampler_runs(name, node, grey, page):
    page.evaluate(LOAD, read(name))
    assert not page.evaluate(SHOWN, node)

    page.evaluate("() => { window.app.queuePrompt(0, 1); }")
    page.wait_for_function(SHOWN, arg=node, polling=100, timeout=RUN_MILLISECONDS)
    colours = page.evaluate(SEEN, node)
    page.evaluate("() => window.app.api.interrupt()")
    page.evaluate(END_OF_RUN, RUN_MILLISECONDS)

    assert all(deviation > 10 for _, deviation in colours)
    means = [mean for mean, _ in colours]
    assert (max(means) - min(means) < 1) == grey
