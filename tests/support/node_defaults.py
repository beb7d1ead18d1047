"""Our nodes at the values that a new node has on the canvas: they are read from the schema, never copied."""


def defaults(node):
    """The values of a new node's widgets, by input."""
    inputs = node.define_schema().inputs
    return {i.id: i.default for i in inputs if getattr(i, "default", None) is not None}


def execute(node, **values):
    """The node's outputs, at its defaults except for these values."""
    return node.execute(**defaults(node) | values).result
