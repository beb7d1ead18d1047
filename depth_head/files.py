"""Files of trained networks: safetensors whose metadata says what they are.

    format, format_version    "inner_guidance", a whole number; a newer one is refused
    kind                      what is in the file, such as "depth_head"
    ...                       text, and JSON where a value has structure

Saving is atomic: a temporary name, then a rename. What is read is a stranger's: only data is ever loaded, a
file that is damaged or not ours is refused in one sentence, and nothing is allocated on its word.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

FORMAT, VERSION = "inner_guidance", 1


def write(path: Path, kind: str, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Write a file; an interruption leaves what was there before."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    described = {"format": FORMAT, "format_version": str(VERSION), "kind": kind, **metadata}
    try:
        content = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, described)
        # save_file makes files that only their owner may read
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: Path, kind: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file of a kind.

    Raises ValueError for what is missing, damaged, not ours, of another kind or of a newer version.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path.name}: refresh the list of files and choose another.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _require_kind(path, kind, metadata)
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path.name} is damaged, or not a safetensors file ({error}): fetch or save it again."
        ) from error


def _require_kind(path: Path, kind: str, metadata: Mapping[str, str]) -> None:
    wanted = kind.replace("_", " ")
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path.name} is not a {wanted} of Inner Guidance: choose a file that is one.")
    if metadata.get("kind") != kind:
        found = metadata.get("kind", "").replace("_", " ")
        raise ValueError(f"{path.name} holds a {found}, not a {wanted}: load it with the node for that.")
    if metadata.get("format_version") != str(VERSION):
        raise ValueError(
            f"{path.name} has format version {metadata.get('format_version')}, this pack reads {VERSION}: "
            "update Inner Guidance."
        )


def parse(path: Path, metadata: Mapping[str, str], name: str) -> Any:
    """The JSON value of a metadata entry. Raises ValueError where there is none."""
    try:
        return json.loads(metadata[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path.name} is damaged (its {name} cannot be read): fetch or save it again."
        ) from error


def fill(path: Path, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network that was made on the meta device the tensors of a file, in the network's precision.

    Raises ValueError unless these are its tensors, all of them, and finite.
    """
    expected = network.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape:
            there = "missing" if name not in tensors else "not as its description says"
            raise ValueError(f"{path.name} is damaged ({name} is {there}): fetch or save it again.")
        if not tensors[name].isfinite().all():
            raise ValueError(f"{path.name} is damaged ({name} is not finite): fetch or save it again.")
    # copies, not views of the file, of which they would keep others from replacing it
    state = {name: tensors[name].to(expected[name].dtype, copy=True) for name in expected}
    network.load_state_dict(state, assign=True)


def fingerprint(path: Path) -> str:
    """A hash of the content: it changes when the file is replaced."""
    content = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            content.update(block)
    return content.hexdigest()
