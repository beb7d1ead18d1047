"""Files of trained networks: safetensors with metadata that identifies them.

    format, format_version    "inner_guidance", a whole number; a newer one is refused
    kind                      what is in the file, such as "depth_head"
    ...                       text, and JSON where a value has structure

Writing is atomic: a temporary file in the same folder, then a rename. Files are untrusted: only data is
loaded, at most FILE_LIMIT bytes, and any fault becomes one sentence.
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

# Depth heads of version 1 have no calibration.
FORMAT, VERSION = "inner_guidance", 2

# The largest public head is 0.1 GB, its optimiser's state included.
FILE_LIMIT = 2**29
# Names, shapes and metadata; a head has about 20 kB of them.
HEADER_LIMIT = 2**20
MOST_BRACKETS = 100
# In JSON, to the end where it is not closed: a search for the end of each one would take minutes.
TEXT = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)', re.DOTALL)
LONGEST_QUOTE = 80
VARIANCE = "running_var"  # what normalisations call theirs; its root is taken
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

T = TypeVar("T")


def write(path: Path, kind: str, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Write a file. After an interruption or an error the previous file is still there.

    Raises ValueError, in a sentence with the path, if the system refuses: a full disk, no permission.
    """
    described = {"format": FORMAT, "format_version": str(VERSION), "kind": kind, **metadata}
    content = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, described)
    unfinished = path.with_name(f"{uuid.uuid4().hex}.unfinished")
    try:
        # save_file makes files that only their owner may read
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def unwritable(path: Path, error: OSError) -> ValueError:
    """The error for a path that the system refuses to write."""
    return ValueError(
        f"{legible(path, 300)} cannot be written ({error.strerror}): check the disk and the permissions of "
        "its folder, or choose another name."
    )


def read(path: Path, kind: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file of a kind.

    Raises ValueError for a file that is missing, damaged, of another program or kind, or of a newer version.
    """
    content = read_bytes(path)
    try:
        metadata, tensors = _parts(content)
    # Errors of every class: a type of number that the library does not know is a KeyError.
    except Exception as error:
        raise ValueError(
            f"{legible(path.name)} is damaged, or not a safetensors file ({legible(error)}): download or "
            "save it again."
        ) from error
    _require_kind(path, kind, metadata)
    return metadata, tensors


def _parts(content: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors. Raises some error, of any class, if this is not a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    if end > HEADER_LIMIT:
        raise ValueError("its header is too long")
    tensors = load(content)
    metadata = json.loads(content[8:end]).get("__metadata__", {})
    if not all(isinstance(text, str) for text in metadata.values()):
        raise TypeError("its metadata is not text")
    return metadata, tensors


def read_bytes(path: Path) -> bytes:
    """The content, in memory, because reading a mapped file that another program truncates kills the process.

    Raises ValueError if the file is missing, larger than FILE_LIMIT or not readable.
    """
    try:
        if not path.is_file():
            raise ValueError(
                f"There is no file {legible(path.name)}: refresh the list of files and choose another."
            )
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > FILE_LIMIT:
                raise ValueError(
                    f"{legible(path.name)} has {size / 2**20:,.0f} MB, more than any file of this pack "
                    f"({FILE_LIMIT / 2**20:.0f} MB): choose another file."
                )
            return file.read(size)
    except OSError as error:
        raise ValueError(
            f"{legible(path, 300)} cannot be read ({error.strerror}): check its permissions and its disk."
        ) from error


def _require_kind(path: Path, kind: str, metadata: Mapping[str, str]) -> None:
    name, wanted = legible(path.name), kind.replace("_", " ")
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{name} is not a {wanted} of Inner Guidance: choose a file that is one.")
    found = text_of(path, metadata, "kind")
    if found != kind:
        found = legible(found.replace("_", " "))
        raise ValueError(f"{name} holds a {found}, not a {wanted}: load it with the node for that.")
    version = text_of(path, metadata, "format_version")
    if version not in {str(version) for version in range(1, VERSION + 1)}:
        raise ValueError(
            f"{name} has format version {legible(version)}, this pack reads 1 to {VERSION}: update Inner "
            "Guidance."
        )


def text_of(path: Path, metadata: Mapping[str, str], name: str) -> str:
    """A metadata entry with words in it. Raises ValueError if there is none."""
    text = metadata.get(name, "")
    if not text.strip(" _"):
        raise damaged(path, f"its {name} is missing")
    return text


def name_of(path: Path, metadata: Mapping[str, str], entry: str) -> str:
    """A metadata entry that messages show as it is. Raises ValueError unless it is_name."""
    text = text_of(path, metadata, entry)
    if not is_name(text):
        raise damaged(path, f"its {entry} is {legible(text)}")
    return text


def parse(path: Path, metadata: Mapping[str, str], name: str, kind: type[T]) -> T:
    """The JSON value of a metadata entry. Raises ValueError if there is none of this type."""
    text = metadata.get(name, "")
    try:
        # Reject what is nested too deeply to be written again. Brackets in a text nest nothing.
        brackets = sum(map(TEXT.sub("", text).count, "[{"))
        value = json.loads(text) if brackets <= MOST_BRACKETS else None
    except ValueError:
        value = None
    if type(value) is not kind:
        raise damaged(path, f"its {name} cannot be read")
    return value


def fill(path: Path, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of a file, in the network's precision, into a network on the meta device.

    Raises ValueError unless the file has exactly the network's tensors, as plain, finite numbers, and no
    negative variance.
    """
    expected = network.state_dict()
    state = {}
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise damaged(path, f"{name} is missing")
        if name not in expected or tensors[name].shape != expected[name].shape:
            raise damaged(path, f"{legible(name)} is not as its description says")
        wanted, stored = expected[name].dtype, tensors[name].dtype
        if stored not in (FLOATS if wanted.is_floating_point else (wanted,)):
            raise ValueError(
                f"{legible(path.name)} stores {name} as {stored}, which cannot be read: save it again as "
                f"{FLOATS[0] if wanted.is_floating_point else wanted}."
            )
        # A copy: a view would keep the whole content of the file in memory.
        state[name] = tensors[name].detach().to(wanted, copy=True)
        if not state[name].isfinite().all():
            raise damaged(path, f"{name} is not finite")
        if name.endswith(VARIANCE) and (state[name] < 0).any():
            raise damaged(path, f"{name} is negative")
    network.load_state_dict(state, assign=True)


def damaged(path: Path, fault: str) -> ValueError:
    """The error for a file with this fault."""
    return ValueError(f"{legible(path.name)} is damaged ({fault}): download or save it again.")


def legible(value: object, longest: int = LONGEST_QUOTE) -> str:
    """Text from a file, safe for a message: one short line without control characters."""
    text = str(value)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: longest + 1])
    return text if len(text) <= longest else text[: longest - 1] + "…"


def is_name(text: str) -> bool:
    """Whether a text from a file can be shown and typed as it is: a short line, no space at its ends."""
    return bool(text) and text == legible(text).strip()


def fingerprint(path: Path) -> str:
    """A hash of the content: it changes when the file is replaced."""
    content = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            content.update(block)
    return content.hexdigest()
