"""Our nodes at the values that a new node has on the canvas: they are read from the schema, never copied."""


def defaults(node):
    """The values of a new node's widgets, by input."""
    inputs = node.define_schema().inputs
    return {i.id: i.default for i in inputs if getattr(i, "default", None) is not None}


def execute(node, **values):
    """The node's outputs, at its defaults except for these values."""
    return node.execute(**defaults(node) | values).result


def with_defaults(prompt, object_info):
    """A graph in the API format; inputs that it leaves out have the defaults that the server tells."""
    filled = {}
    for number, node in prompt.items():
        groups = object_info[node["class_type"]]["input"].values()
        options = {name: entry[1] for group in groups for name, entry in group.items() if len(entry) > 1}
        defaults_told = {name: told["default"] for name, told in options.items() if "default" in told}
        filled[number] = node | {"inputs": defaults_told | node["inputs"]}
    return filled
