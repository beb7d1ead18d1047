"""Writes the API twin of every workflow: workflows/*.json -> workflows/api/.

    make workflows

The canvas stores the values of a node's widgets as a bare list, in the order in which the node declares them;
the API wants them by name. The names come from the running host, so this starts one.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from .host_server import HostServer, HostServerError, Prompt
from .setup_host import ROOT, SetupError, host_folder

WORKFLOWS = ROOT / "workflows"
NOTES = frozenset({"Note", "MarkdownNote"})
BYPASSED = 4
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
WIDGET_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC_COMBO})


class WorkflowError(Exception):
    """A workflow file that does not fit the nodes of the host."""


def widget_slots(declared: dict[str, Any], values: Sequence[Any]) -> list[str | None]:
    """Names of the values that the canvas stores for a node, in order; None where the API has none.

    declared: the inputs of a node, or of one option of a dynamic combo, as the host describes them. values:
    what the canvas stored; they decide which inputs a dynamic combo has.
    """
    slots: list[str | None] = []
    for group in ("required", "optional"):
        for name, (kind, *rest) in declared.get(group, {}).items():
            options = rest[0] if rest else {}
            if (isinstance(kind, str) and kind not in WIDGET_TYPES) or options.get("forceInput"):
                continue
            slots.append(name)
            if options.get("control_after_generate"):
                slots.append(None)  # fixed, randomize, ...
            if options.get("image_upload"):
                slots.append(None)  # the upload button
            if kind == DYNAMIC_COMBO:  # the inputs of the option that is chosen follow it
                inputs = {option["key"]: option["inputs"] for option in options["options"]}
                chosen, *following = values[len(slots) - 1 :] or [None]
                inner = widget_slots(inputs.get(chosen, {}), following)
                slots += [part and f"{name}.{part}" for part in inner]
    return slots


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> Prompt:
    """The API form of a workflow in the canvas's format, version 0.4.

    workflow: contents of a workflow file, without subgraphs or reroutes; a node that is bypassed has no
    inputs to pass on, and is left out with its links. object_info: what the host says about its nodes. Raises
    WorkflowError for a node that the host does not have, and for a list of values of the wrong length.
    """
    nodes = [node for node in workflow["nodes"] if node["mode"] != BYPASSED]
    there = {node["id"] for node in nodes}
    sources = {link: [str(node), slot] for link, node, slot, *_ in workflow["links"] if node in there}
    prompt = {}
    for node in sorted(nodes, key=lambda node: node["id"]):
        kind = node["type"]
        if kind in NOTES:
            continue
        if kind not in object_info:
            raise WorkflowError(f"node {node['id']} is a {kind}, which this host does not have")
        values = node.get("widgets_values", [])
        slots = widget_slots(object_info[kind]["input"], values)
        if len(slots) != len(values):
            raise WorkflowError(f"{kind} (node {node['id']}) stores {len(values)} values for {slots}")
        inputs = {name: value for name, value in zip(slots, values, strict=True) if name}
        inputs |= {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] in sources}
        prompt[str(node["id"])] = {
            "class_type": kind,
            "inputs": inputs,
            "_meta": {"title": node.get("title") or object_info[kind]["display_name"] or kind},
        }
    return prompt


def main() -> None:
    """Rewrite workflows/api from workflows."""
    with HostServer(host_folder(), ROOT, log=ROOT / ".cache" / "server.log") as server:
        object_info = server.object_info()
    for path in sorted(WORKFLOWS.glob("*.json")):
        try:
            prompt = to_api(json.loads(path.read_text(encoding="utf-8")), object_info)
        except WorkflowError as error:
            raise WorkflowError(f"{path.name}: {error}") from error
        twin = WORKFLOWS / "api" / path.name
        twin.parent.mkdir(exist_ok=True)
        twin.write_text(json.dumps(prompt, indent=2) + "\n", encoding="utf-8")
        print(twin.relative_to(ROOT))


if __name__ == "__main__":
    try:
        main()
    except (SetupError, HostServerError, WorkflowError) as error:
        sys.exit(f"make workflows: {error}")
