"""What saved workflows depend on, of our nodes: tests/node_interface.json, written by `make interface`."""

import json

from inner_guidance.nodes import NODES
from inner_guidance.tools.setup_host import ROOT

FILE = ROOT / "tests" / "node_interface.json"
# A saved workflow holds the values of these by their place among a node's widgets.
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def input_of(name, entry, required):
    """An input, from its entry in /object_info."""
    kind, options = entry[0], entry[1] if len(entry) > 1 else {}
    told = {name: options[name] for name in ("default", "min", "max") if name in options}
    # The files of a folder are no part of the interface.
    if kind == "COMBO" and "default" in options:
        told["options"] = options["options"]
    # The page adds a widget behind it: fixed, randomize, ...
    if options.get("control_after_generate", name in ("seed", "noise_seed")):
        told["control"] = True
    widget = kind in WIDGETS and not options.get("forceInput")
    return {"type": kind, "required": required, "widget": widget} | told


def interface_of(object_info):
    """By node: inputs by name, in the order of /object_info, and [type, name] of each output."""
    return {
        node: {
            "inputs": {
                name: input_of(name, entry, group == "required")
                for group in ("required", "optional")
                for name, entry in info["input"].get(group, {}).items()
            },
            "outputs": [list(output) for output in zip(info["output"], info["output_name"], strict=True)],
        }
        for node, info in object_info.items()
    }


def today():
    """The interface of the nodes as they are."""
    infos = [node.GET_NODE_INFO_V1() for node in NODES]
    return interface_of({info["name"]: info for info in infos})


def saved():
    """The interface that workflows rely on."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def incompatible_changes(before, after):
    """A sentence for each change with which a workflow saved before would fail or give another image."""
    changes = []
    for node, of_node in before.items():
        if node not in after:
            changes.append(f"{node} is gone")
            continue
        old, new = of_node["inputs"], after[node]["inputs"]
        for name, given in old.items():
            changes += [f"{node}.{name} {change}" for change in changes_of_input(given, new.get(name))]
        for name in new.keys() - old.keys():
            if new[name]["required"] and "default" not in new[name]:
                changes.append(f"{node}.{name} is new, required and has no default")
        widgets = [[name for name, given in of.items() if given["widget"]] for of in (old, new)]
        if widgets[1][: len(widgets[0])] != widgets[0]:
            changes.append(f"{node}: the widgets {widgets[0]} are not the first, in this order")
        outputs = of_node["outputs"]
        if after[node]["outputs"][: len(outputs)] != outputs:
            changes.append(f"{node}: the outputs {outputs} are not the first, in this order")
    return changes


def changes_of_input(old, new):
    """What an old workflow's value or link may not survive."""
    if new is None:
        return ["is gone"]
    changes = [f"had {key} {old[key]}" for key in ("type", "widget") if new[key] != old[key]]
    if new.get("control") != old.get("control"):
        changes.append("had another number of widgets")
    if new["required"] and not old["required"]:
        changes.append("was optional")
    if "default" in old and new.get("default") != old["default"]:
        changes.append(f"had the default {old['default']}")
    if "min" in old and new.get("min", old["min"]) > old["min"]:
        changes.append(f"had the minimum {old['min']}")
    if "max" in old and new.get("max", old["max"]) < old["max"]:
        changes.append(f"had the maximum {old['max']}")
    lost = [option for option in old.get("options", ()) if option not in new.get("options", ())]
    return changes + [f"had the option {option}" for option in lost]


def as_text(interface):
    """JSON with an input a line, so that a change of one is a change of one line."""
    nodes = []
    for node, of_node in interface.items():
        inputs = ",\n".join(
            f"   {json.dumps(name)}: {json.dumps(given)}" for name, given in of_node["inputs"].items()
        )
        outputs = json.dumps(of_node["outputs"])
        nodes.append(f' {json.dumps(node)}: {{\n  "inputs": {{\n{inputs}\n  }},\n  "outputs": {outputs}\n }}')
    return "{\n" + ",\n".join(nodes) + "\n}\n"


def main():
    """Write the file."""
    FILE.write_text(as_text(today()), encoding="utf-8")
