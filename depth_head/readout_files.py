"""The public Readout depth heads, `readout_sdv15_spatial_depth.pt` and `readout_sdxl_spatial_depth.pt`.

Torch checkpoints: `config`, a plain dict; `aggregation_network`, a state dict with the names of
architectures/readout.py; the optimiser's state, which is not needed. They are read with weights_only=True,
and only after a check of what the file would make torch do.
"""

import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch

from .architectures.readout import Readout
from .files import fill, legible, read_bytes
from .head import PUBLIC_READOUT, SD1, SDXL, DepthHead, middle_blocks

# Channels of the decoder's ResBlocks, deepest first.
FAMILIES = {
    (1280,) * 6 + (640,) * 3 + (320,) * 3: SD1,
    (1280,) * 3 + (640,) * 3 + (320,) * 3: SDXL,
}
EMBEDDING = ("time", 1280)
# What a public head's pickle names. With the optimiser's state it has 63 kB and 4,000 tuples.
NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {dtype}Storage" for dtype in ("Float", "Half", "BFloat16", "Double", "Long", "Int")),
}
PICKLE_LIMIT, MOST_ENTRIES, MOST_TUPLES = 2**18, 10_000, 20_000
# Of the authors' training code, in some of their files, not used for depth.
UNUSED = ("logit_scale",)


def read_readout(path: Path) -> DepthHead:
    """A head from a public file. Raises ValueError, in one sentence, for anything else."""
    content = read_bytes(path)
    try:
        checkpoint = torch.load(_plain_archive(content), map_location="cpu", weights_only=True)
    # Any class of error: a malformed pickle can break any operation.
    except Exception as error:
        raise ValueError(
            f"{legible(path.name)} is damaged, or holds more than weights and is therefore not opened: "
            "download it again from the authors' page."
        ) from error
    config, weights = _parts(path, checkpoint)
    family = FAMILIES.get(tuple(config["dims"]))
    if family is None:
        raise ValueError(
            f"{legible(path.name)} is a readout head for a UNet of other blocks than those of {SD1} or "
            f"{SDXL}: only heads for these can be loaded."
        )
    taps = {f"r{i}": channels for i, channels in enumerate(config["dims"])}
    with torch.device("meta"):
        network = Readout(taps, [f"r{middle_blocks(len(taps))[1]}"], EMBEDDING, config["projection_dim"])
    fill(path, network, {name: weight for name, weight in weights.items() if name not in UNUSED})
    network.requires_grad_(False).eval()
    name = legible(path.name)
    training = {"source": PUBLIC_READOUT, "file": name}
    return DepthHead(network, family, training=training, name=name)


def _plain_archive(content: bytes) -> io.BytesIO:
    """The zip archive of a checkpoint, rewritten from the entries that were checked.

    With weights_only=True a pickle cannot run code, but it can still unpack 3 GB from 13 MB, encode bytes as
    hexadecimal thirty times over, or nest tuples until their hash overflows the stack. Raises some error, of
    any class, for anything but uncompressed weights.
    """
    # The signature of a directory entry: each becomes an object.
    if content.count(b"PK\x01\x02") > MOST_ENTRIES:
        raise zipfile.BadZipFile("too many entries")
    plain = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(plain, "w") as again:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise zipfile.BadZipFile("compressed")
        if sum(entry.file_size for entry in entries) > len(content) or len(set(names)) < len(names):
            raise zipfile.BadZipFile("entries on top of each other")
        for entry in entries:
            part = archive.read(entry)
            if entry.filename.endswith(".pkl"):
                _require_plain_pickle(part)
            again.writestr(entry.filename, part)
    plain.seek(0)
    return plain


def _require_plain_pickle(pickled: bytes) -> None:
    """Raises ValueError unless a pickle is short and names nothing but tensors."""
    if len(pickled) > PICKLE_LIMIT:
        raise ValueError("the pickle is too long")
    tuples = 0
    for operation, argument, _ in pickletools.genops(pickled):
        tuples += operation.name.startswith("TUPLE")
        if operation.name == "GLOBAL" and argument not in NAMES:
            raise ValueError(f"the pickle names {argument}")
        if operation.name in ("STACK_GLOBAL", "INST", "OBJ") or tuples > MOST_TUPLES:
            raise ValueError("the pickle is not one of weights")


def _parts(path: Path, checkpoint: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and weights of a checkpoint that has the public heads' layout."""
    # int(...): a tensor is compared with nothing
    match checkpoint:
        case {
            "config": {
                "projection_dim": int(384),
                "dims": [*dims],
                "save_timestep": [_],
                "aggregation_kwargs": {"use_output_head": True, "output_head_channels": int(3)},
            } as config,
            "aggregation_network": dict() as weights,
        } if (
            all(type(channels) is int for channels in dims)
            and all(isinstance(name, str) for name in weights)
            and all(isinstance(weight, torch.Tensor) for weight in weights.values())
        ):
            return config, weights
    raise ValueError(
        f"{legible(path.name)} is not a depth head of Readout Guidance: choose one of its spatial_depth "
        "files, or a safetensors file of Save Depth Head."
    )
