"""The inputs of a node, as a new one on the canvas has them."""

from __future__ import annotations

from typing import Any


def with_defaults(node: Any, **values: Any) -> dict[str, Any]:
    """The defaults of a node's widgets, and these values."""
    inputs = node.define_schema().inputs
    return {i.id: i.default for i in inputs if getattr(i, "default", None) is not None} | values
