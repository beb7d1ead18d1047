"""The workflow files as the canvas and the template browser want them."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
FILES = sorted(FOLDER.glob("*.json"))
NOTES = ("Note", "MarkdownNote")
MODEL_FILES = (".safetensors", ".ckpt", ".pth", ".pt")
TITLE, HEADING, SPARE = 30, 40, 40  # pixels: a node's title, a group's heading, what stays free below a node
WIDEST = 2070  # pixels of a template
SCREEN, FIT, EDGE = (1920, 1080), 0.75, 10  # a page, how much a template fills, pixels around that
READABLE = 8 / 14  # zoom; below it the classic canvas draws no text, which is 14 px high and 8 at least


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


def box(node):
    """Left, top, right and bottom of a node with its title, all that is drawn of a collapsed one."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y if node["flags"].get("collapsed") else y + height


def overlap(a, b):
    return all(a[axis] < b[axis + 2] and b[axis] < a[axis + 2] for axis in (0, 1))


def test_nodes_may_grow_without_touching_others(workflow):
    """Nodes 2.0 draws them taller than the file says, and so does a picture or a bar of progress."""
    boxes = [box(node) for node in workflow["nodes"]]
    for number, a in enumerate(boxes):
        for b in boxes[:number]:
            assert not overlap((*a[:3], a[3] + SPARE), (*b[:3], b[3] + SPARE)), f"{a} and {b}"


def test_groups_hold_their_nodes_and_do_not_overlap(workflow):
    groups = [
        (x, y, x + width, y + height) for x, y, width, height in (g["bounding"] for g in workflow["groups"])
    ]
    for number, a in enumerate(groups):
        assert not any(overlap(a, b) for b in groups[:number])
    for node in workflow["nodes"]:
        left, top, right, bottom = box(node)
        holding = [g for g in groups if overlap(box(node), g)]
        if node["type"] in NOTES:
            assert not holding
        else:
            ((x, y, end, lowest),) = holding
            assert x <= left
            assert right <= end
            assert top - y >= HEADING
            assert lowest - bottom >= SPARE


def test_workflow_opens_readable(workflow):
    """The page shows all of a template when it opens it, so a graph that is too large is too small to read.

    Nodes 2.0 reckons with the whole height of a collapsed node.
    """
    lefts, tops, rights, bottoms = zip(
        *(box(node | {"flags": {}}) for node in workflow["nodes"]), strict=True
    )
    width, height = max(rights) - min(lefts), max(bottoms) - min(tops)

    assert width <= WIDEST
    assert FIT * min(SCREEN[0] / (width + 2 * EDGE), SCREEN[1] / (height + 2 * EDGE)) >= READABLE


def test_notes_name_inputs_in_bold(workflow):
    """Nodes 2.0 draws `code` in a note blue on blue."""
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            assert "`" not in node["widgets_values"][0]


def test_files_are_numbered_from_the_first_to_the_last_thing_to_learn():
    assert [path.stem[:3] for path in FILES] == [f"{number:02} " for number in range(1, len(FILES) + 1)]
    demos = [path.stem[3:].startswith("Demo") for path in FILES]
    assert demos == sorted(demos, reverse=True)


def test_page_offers_each_missing_model_for_download(workflow):
    for node in workflow["nodes"]:
        files = [v for v in node["widgets_values"] if str(v).endswith(MODEL_FILES)]
        if not files or node["type"] in ("InnerLoadDepthPrior", "InnerLoadClassifierHead"):  # none is public
            continue
        (offered,) = node["properties"]["models"]
        assert [offered["name"]] == files
        assert offered["url"].startswith("https://huggingface.co/")
        assert offered["url"].endswith(f"/{offered['name']}")
        assert offered["directory"]
