"""The demo templates, queued in the page: pictures on the output nodes, and live ones while it runs."""

import json
from pathlib import Path

import pytest

from inner_guidance.tests.support.page_checks import errors_of

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
DEMOS = sorted(path.stem for path in FOLDER.glob("*Demo*.json"))
OUTPUTS = {"SaveImage", "PreviewImage", "SaveAnimatedWEBP"}
LIVE = {
    "InnerDepthAwareGuidance",
    "InnerRecordAttention",
    "InnerRecordFeatures",
    "InnerTrainClassifierHead",
    "InnerTrainDepthHead",
    "InnerTrainDepthPrior",
}
ALWAYS = ("02 Demo - See what the model sees", "chinese_page")
LOAD = """async workflow => {
    await window.app.loadGraphData(workflow, true, true, null, { openSource: "template" });
}"""
# Of each node, from now on: the most pictures that it showed at once, and how much the first varied at most,
# 0 to 255.
WATCH = """nodes2 => {
    const shown = node => nodes2
        ? [...document.querySelectorAll(`[data-node-id="${node.id}"] img`)] : node.imgs ?? [];
    const deviation = picture => {
        const context = new OffscreenCanvas(16, 16).getContext("2d");
        context.drawImage(picture, 0, 0, 16, 16);
        const values = [...context.getImageData(0, 0, 16, 16).data].filter((_, i) => i % 4 === 1);
        const mean = values.reduce((a, b) => a + b) / values.length;
        return Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length);
    };
    const seen = window.seen = {};
    const most = window.most = {};
    clearInterval(window.watch);
    window.watch = setInterval(() => {
        for (const node of window.app.graph.nodes) {
            const pictures = shown(node).filter(picture => picture.complete && picture.naturalWidth);
            most[node.id] = Math.max(most[node.id] ?? 0, pictures.length);
            if (pictures.length) seen[node.id] = Math.max(seen[node.id] ?? 0, deviation(pictures[0]));
        }
    }, 200);
}"""
# Other seeds, because ComfyUI takes from its cache what it has drawn before, without live pictures.
CHANGE = """shift => {
    for (const { title, type, widgets } of window.app.graph.nodes) {
        if (title === "Seed") widgets[0].value += shift;
        if (type.startsWith("InnerTrain")) widgets.find(widget => widget.name === "seed").value += shift;
    }
}"""
SEEN = "ids => ids.every(id => window.seen[id] > 3)"
MILLISECONDS = 240_000


@pytest.mark.parametrize(
    ("name", "view", "shift"),
    [
        pytest.param(name, view, shift, marks=() if (name, view) == ALWAYS else pytest.mark.every_template)
        for view, shift in [("page", 1), ("chinese_page", 2)]
        for name in DEMOS
    ],
)
def test_a_demo_shows_its_pictures(name, view, shift, request):
    page = request.getfixturevalue(view)
    workflow = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    live, outputs = (
        [node["id"] for node in workflow["nodes"] if node["type"] in types] for types in (LIVE, OUTPUTS)
    )

    with errors_of(page) as errors:
        page.evaluate(LOAD, workflow)
        page.evaluate(CHANGE, shift)
        page.evaluate(WATCH, view == "chinese_page")
        page.evaluate("() => { window.app.queuePrompt(0, 1); }")
        page.wait_for_function(SEEN, arg=live + outputs, polling=200, timeout=MILLISECONDS)

    assert not errors
    assert page.evaluate("ids => ids.map(id => window.most[id])", live) == [1] * len(live)
