"""The types of this pack, and schema inputs that several nodes share."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from comfy_api.latest import io

ATTENTION_RECORD = io.Custom("ATTENTION_RECORD")
FEATURE_RECORD = io.Custom("FEATURE_RECORD")
DEPTH_HEAD = io.Custom("DEPTH_HEAD")
DEPTH_PRIOR = io.Custom("DEPTH_PRIOR")
CLASSIFIER_HEAD = io.Custom("CLASSIFIER_HEAD")

ADVANCED = {"advanced": True}  # ComfyUI 0.9.2 does not accept it as a keyword argument

# For the defaults of validate_inputs: the host gives None for what is connected.
UNCONNECTED = object()


def percent(name: str, default: float, tooltip: str, **further: Any) -> io.Float.Input:
    """A point in the sampling, from 0 (first step) to 1 (last step)."""
    counted = "It counts from the first step that is sampled, in image to image too."
    return io.Float.Input(
        name, default=default, min=0.0, max=1.0, step=0.001, tooltip=f"{tooltip} {counted}", **further
    )


def search_aliases(*words: str) -> dict[str, Any]:
    """Terms that an artist may type in the node search, for io.Schema. ComfyUI 0.9.2 has no such field."""
    known = {field.name for field in fields(io.Schema)}
    return {"search_aliases": list(words)} if "search_aliases" in known else {}


def chosen_of(options: Collection[str], name: str, value: str | None) -> bool | str:
    """For validate_inputs, whose own inputs the host does not check: whether a value is an option.

    None: it is the output of another node.
    """
    if value is None or value in options:
        return True
    return f"{name}: there is no '{value}'. Choose {', '.join(options)}."
