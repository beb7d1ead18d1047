"""The workflow files as the canvas and the template browser want them."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
FILES = sorted(FOLDER.glob("*.json"))
NOTES = ("Note", "MarkdownNote")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def workflow(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def test_there_are_workflows():
    assert FILES


def test_format_is_the_one_the_frontend_saves(workflow):
    assert workflow["version"] == 0.4
    assert workflow["last_node_id"] == max(node["id"] for node in workflow["nodes"])
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])


def test_nodes_say_which_pack_they_need(workflow):
    for node in workflow["nodes"]:
        if node["type"] not in NOTES:
            properties = node["properties"]
            ours = node["type"].startswith("Inner")
            assert properties["cnr_id"] == ("inner-guidance" if ours else "comfy-core")
            assert properties["ver"]
            assert properties["Node name for S&R"] == node["type"]


def test_reader_is_told_what_to_try(workflow):
    notes = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"]

    assert any("Try" in note for note in notes)
    assert workflow["groups"]


def test_links_agree_with_the_slots_at_both_ends(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    seen = set()
    for link, source, source_slot, target, target_slot, kind in workflow["links"]:
        output, entry = nodes[source]["outputs"][source_slot], nodes[target]["inputs"][target_slot]
        assert link in output["links"]
        assert entry["link"] == link
        assert output["type"] == entry["type"] == kind
        seen.add(link)
    assert seen == {slot["link"] for node in nodes.values() for slot in node["inputs"]} - {None}


def test_nodes_lie_in_no_other_nodes_place(workflow):
    boxes = [(node["pos"], node["size"]) for node in workflow["nodes"]]
    for number, (a, size_a) in enumerate(boxes):
        for b, size_b in boxes[:number]:
            apart = any(
                a[axis] + size_a[axis] <= b[axis] or b[axis] + size_b[axis] <= a[axis] for axis in (0, 1)
            )
            assert apart, f"{a} and {b} overlap"


def test_page_offers_each_missing_model_for_download(workflow):
    for node in workflow["nodes"]:
        files = [v for v in node["widgets_values"] if str(v).endswith((".safetensors", ".ckpt", ".pth"))]
        if node["properties"].get("cnr_id") != "comfy-core" or not files:
            continue
        (offered,) = node["properties"]["models"]
        assert [offered["name"]] == files
        assert offered["url"].startswith("https://huggingface.co/")
        assert offered["url"].endswith(f"/{offered['name']}")
        assert offered["directory"]


def test_templates_for_transformers_fit_a_screen_2000_pixels_wide():
    written = [json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("Depth lock*.json")]

    assert len(written) == 4
    for workflow in written:
        left = min(node["pos"][0] for node in workflow["nodes"])
        assert max(node["pos"][0] + node["size"][0] for node in workflow["nodes"]) - left <= 2000
