"""The pack in the running server: loaded whole, with help pages, translations and a tooltip everywhere."""

import json


def test_every_node_is_loaded(object_info, node_ids):
    ours = [
        name for name, node in object_info.items() if node["python_module"] == "custom_nodes.inner-guidance"
    ]

    assert sorted(ours) == sorted(node_ids)
    assert "InnerSelfAttentionGuidance" in ours


def test_log_has_no_complaint_about_the_pack(server):
    log = server.log.read_text(encoding="utf-8", errors="replace")

    assert "custom_nodes/inner-guidance" in log
    assert "IMPORT FAILED" not in log
    assert "comfy_entrypoint" not in log


def test_every_node_has_its_help_page(server, node_ids):
    for name in node_ids:
        page = server.get(f"/extensions/inner-guidance/docs/{name}.md").decode()
        assert page.startswith("# "), name
        assert len(page) > 300, name


def test_every_input_and_output_has_a_tooltip(object_info, node_ids):
    without = [
        f"{name}.{slot}"
        for name in node_ids
        for group in ("required", "optional")
        for slot, (_, options) in object_info[name]["input"].get(group, {}).items()
        if not options.get("tooltip")
    ]
    without += [
        f"{name} -> {output}"
        for name in node_ids
        for output, tooltip in zip(
            object_info[name]["output_name"], object_info[name]["output_tooltips"], strict=True
        )
        if not tooltip
    ]

    assert without == []


def test_every_node_says_what_it_is(object_info, node_ids):
    for name in node_ids:
        assert object_info[name]["display_name"], name
        assert len(object_info[name]["description"]) > 40, name


def test_server_tells_the_translations(server, node_ids):
    told = json.loads(server.get("/i18n"))

    for language in ("zh", "ja", "ko"):
        assert told[language]["nodeDefs"].keys() >= set(node_ids)
        assert told[language]["dataTypes"]["DEPTH_HEAD"]
