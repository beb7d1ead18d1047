"""The page with Nodes 2.0 and in Chinese: templates, node search and help pages."""

import json
from pathlib import Path

import pytest

from inner_guidance.tests.support.page_checks import errors_of, overlaps

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
ALWAYS = ("01 Demo - Self-Attention Guidance", "20 Depth-aware guidance on SD 1.5")
TEXTS = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
AS_TEMPLATE = """async workflow => {
    await window.app.loadGraphData(workflow, true, true, null, { openSource: "template" });
}"""
DRAWN = "number => document.querySelectorAll('[data-node-id]').length === number"
SEARCH = "() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
LEAST_ZOOM = 0.3
MILLISECONDS = 20_000


@pytest.mark.parametrize(
    "name",
    [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.every_template) for name in NAMES],
)
def test_a_template_opens(name, chinese_page):
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    with errors_of(chinese_page) as errors:
        chinese_page.evaluate(AS_TEMPLATE, workflow)
        chinese_page.wait_for_function(DRAWN, arg=len(workflow["nodes"]), timeout=MILLISECONDS)
        chinese_page.wait_for_timeout(300)  # for the marks of missing files, below their nodes

    assert not errors
    assert not overlaps(chinese_page, nodes_2=True)
    assert chinese_page.evaluate("() => window.app.canvas.ds.scale") > LEAST_ZOOM
    titles = chinese_page.evaluate("() => window.app.graph.nodes.map(node => [node.type, node.title])")
    untitled = {node["type"] for node in workflow["nodes"] if "title" not in node} & TEXTS.keys()
    for kind in untitled:
        assert [kind, TEXTS[kind]["display_name"]] in titles


@pytest.mark.parametrize(
    ("typed", "node"),
    [
        ("SAG", "InnerSelfAttentionGuidance"),
        ("DAG", "InnerDepthAwareGuidance"),
        ("depth map", "InnerDepthEstimate"),
        ("readout", "InnerLoadDepthHead"),
        ("attention map", "InnerAttentionMaps"),
        (TEXTS["InnerDepthEstimate"]["display_name"], "InnerDepthEstimate"),
    ],
)
def test_node_search_finds_what_an_artist_types(typed, node, chinese_page):
    chinese_page.evaluate(SEARCH)
    chinese_page.get_by_role("combobox").last.fill(typed)

    found = chinese_page.get_by_role("option").filter(has_text=TEXTS[node]["display_name"])
    found.first.wait_for(timeout=MILLISECONDS)
    chinese_page.keyboard.press("Escape")
