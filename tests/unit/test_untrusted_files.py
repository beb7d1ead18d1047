"""Depth head files that ask for too much, hold what they must not, or change while they are read."""

import json
import os
import struct
import time
from random import Random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from inner_guidance.depth_head.architectures.pixel_mlp import PixelMLP
from inner_guidance.depth_head.architectures.readout import Readout
from inner_guidance.depth_head.head import DepthHead
from inner_guidance.depth_head.head_files import load_depth_head, save_depth_head
from inner_guidance.tests.support.another_process import loaded_elsewhere

MANY = 50_000
posix = pytest.mark.skipif(os.name == "nt", reason="resource, and truncating an open file, are POSIX's")


def pixel_mlp():
    return PixelMLP({"o1": 8, "o2": 4}, strong=("o1", "o2"), weak=("o2",)).eval()


def readout():
    return Readout({"r0": 8, "r1": 128}, weak=("r1",), embedding=("time", 16), projection=128).eval()


MAKE = {"pixel_mlp": pixel_mlp, "readout": readout}


def saved(folder, network=None):
    path = folder / "made.safetensors"
    save_depth_head(path, DepthHead(network or pixel_mlp(), "a model"))
    return path


def rewrite(path, tensors=lambda found: found, **metadata):
    """The file with other tensors or metadata entries."""
    with safe_open(path, framework="pt") as file:
        described = file.metadata() | metadata
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors(found), path, described)


@pytest.mark.parametrize(
    ("architecture", "config", "sentence"),
    [
        ("pixel_mlp", {"widths": [1] * MANY}, "widths must be 1 to 16 whole numbers from 1 to 4096"),
        ("pixel_mlp", {"widths": [10**12]}, "widths must be"),
        ("pixel_mlp", {"widths": []}, "widths must be"),
        ("pixel_mlp", {"widths": [8.0]}, "widths must be"),
        ("pixel_mlp", {"widths": [True]}, "widths must be"),
        ("pixel_mlp", {"taps": {f"o{i}": 1 for i in range(MANY)}}, "taps must be 1 to 64 names"),
        ("pixel_mlp", {"taps": {}}, "taps must be 1 to 64 names"),
        ("pixel_mlp", {"taps": {"o1": 10**9, "o2": 4}}, "o1 must have 1 to 16384 channels"),
        ("pixel_mlp", {"taps": {"o1": "8", "o2": 4}}, "o1 must have 1 to 16384 channels"),
        ("pixel_mlp", {"taps": {"\x1b[31m": 8}}, "the name of a tap must be 1 to 16 letters and digits"),
        ("pixel_mlp", {"strong": ["o1"] * MANY}, "strong must be some of the taps"),
        ("pixel_mlp", {"strong": ["o1", "o1"]}, "strong must be some of the taps"),
        ("pixel_mlp", {"strong": "o1"}, "strong must be some of the taps"),
        ("pixel_mlp", {"weak": []}, "weak must be some of the taps"),
        ("readout", {"taps": {f"r{i}": 1 for i in range(MANY)}}, "taps must be 1 to 64 names"),
        ("readout", {"projection": 128 * 10**9}, "widths must be"),
        ("readout", {"projection": 100}, "projection must be a multiple of 128"),
        ("readout", {"embedding": ["time", 10**12]}, "time must have 1 to 16384 channels"),
        ("readout", {"embedding": ["r1", 16]}, "the embedding must not be a tap"),
        ("readout", {"embedding": 5}, "cannot unpack"),
        ("readout", {"weak": [["r1"]]}, "weak must be some of the taps"),
    ],
)
def test_a_description_that_asks_for_too_much_is_refused_before_anything_is_built(
    tmp_path, monkeypatch, architecture, config, sentence
):
    network = MAKE[architecture]()
    path = saved(tmp_path, network)
    rewrite(path, config=json.dumps(network.config | config))

    def build(*args, **kwargs):
        pytest.fail("a layer was built")

    for layer in (torch.nn.Linear, torch.nn.Conv2d):
        monkeypatch.setattr(layer, "__init__", build)
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"made.safetensors is damaged .*{sentence}") as error:
        load_depth_head(path)
    assert time.monotonic() - started < 2
    assert len(str(error.value)) < 400


def test_a_description_with_everything_at_its_limit_is_answered_at_once(tmp_path):
    path = saved(tmp_path, readout())
    taps = {f"r{i}": 16384 for i in range(64)}
    config = {"taps": taps, "weak": list(taps), "embedding": ["time", 16384], "projection": 4096}
    rewrite(path, config=json.dumps(config))
    started = time.monotonic()
    with pytest.raises(ValueError, match="is not as its description says"):
        load_depth_head(path)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.complex64, torch.bool, torch.int32, torch.uint16]
)
def test_weights_of_another_type_are_one_sentence(tmp_path, dtype):
    path = saved(tmp_path)
    rewrite(path, lambda found: found | {"strong.depth.bias": torch.zeros(1).to(dtype)})
    with pytest.raises(
        ValueError, match=rf"stores strong.depth.bias as {dtype}, which cannot be read: save it"
    ):
        load_depth_head(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_any_usual_precision_are_read(tmp_path, dtype):
    path = saved(tmp_path)
    rewrite(path, lambda found: found | {"strong.depth.bias": torch.full((1,), 1.5, dtype=dtype)})
    bias = load_depth_head(path).network.strong.depth.bias
    assert (bias.item(), bias.dtype) == (1.5, torch.float32)


def test_a_weight_that_overflows_is_not_finite(tmp_path):
    path = saved(tmp_path)
    rewrite(path, lambda found: found | {"strong.depth.bias": torch.full((1,), 1e300, dtype=torch.float64)})
    with pytest.raises(ValueError, match=r"strong.depth.bias is not finite"):
        load_depth_head(path)


def test_a_type_that_the_library_does_not_know_is_one_sentence(tmp_path):
    header = json.dumps({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "made.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"0")
    with pytest.raises(ValueError, match=r"^made\.safetensors is damaged"):
        load_depth_head(path)


@pytest.mark.parametrize(
    "entry", ["format_version", "kind", "target", "architecture", "model_family", "depth_range", "config"]
)
def test_what_a_file_says_is_shortened_and_escaped(tmp_path, entry):
    path = saved(tmp_path)
    said = "\x1b[31m\nü\u202e" + "x" * 400_000
    rewrite(path, **{entry: json.dumps({said: said}) if entry in ("depth_range", "config") else said})
    with pytest.raises(ValueError, match=r"^made\.safetensors") as error:
        load_depth_head(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


def test_quotes_that_are_never_closed_are_answered_at_once(tmp_path):
    path = saved(tmp_path)
    rewrite(path, config='\\"' * 30_000)
    started = time.monotonic()
    with pytest.raises(ValueError, match="its config cannot be read"):
        load_depth_head(path)
    assert time.monotonic() - started < 2


@posix
def test_names_of_tensors_and_of_files_are_shortened_and_escaped(tmp_path):
    path = saved(tmp_path)
    rewrite(path, lambda found: found | {"\x1b[31m" + "x" * 400_000: torch.zeros(1)})
    path = path.rename(path.with_name("red\x1b[31m\n" + "x" * 200 + ".safetensors"))
    with pytest.raises(
        ValueError, match=r"^red\\x1b\[31m\\nx+… is damaged \(\\x1b\[31mx+… is not as"
    ) as error:
        load_depth_head(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


@pytest.mark.slow
@posix
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_huge_file_is_not_read(tmp_path, suffix):
    path = tmp_path / f"huge{suffix}"
    with open(path, "wb") as file:
        file.truncate(2**30)
    said, megabytes = loaded_elsewhere(path)
    assert said.startswith(f"huge{suffix} has 1,024 MB, more than any file of this pack (512 MB): choose")
    assert megabytes < 20


@pytest.mark.slow
@posix
def test_a_huge_header_is_not_parsed(tmp_path):
    path = tmp_path / "made.safetensors"
    header = json.dumps({"__metadata__": {str(i): "" for i in range(1_000_000)}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    said, megabytes = loaded_elsewhere(path)
    assert "its header is too long" in said
    assert megabytes < len(header) / 2**20 + 20


@posix
def test_a_file_that_is_truncated_while_it_is_read_is_one_sentence(tmp_path):
    """A mapped file would end the process with SIGBUS."""
    path = saved(tmp_path, PixelMLP({"o1": 4096}, ["o1"], ["o1"], (512,)))
    meddling = """
content = path.read_bytes()
def meddle():
    while True:
        path.write_bytes(content)
        with open(path, "r+b") as file:
            time.sleep(0.002)
            file.truncate(4096)
threading.Thread(target=meddle, daemon=True).start()
seen = set()
for _ in range(100):
    try:
        load_depth_head(path)
        seen.add("loaded")
    except ValueError as error:
        seen.add(str(error)[:27])
assert seen <= {"loaded", "made.safetensors is damaged"}, seen
assert "made.safetensors is damaged" in seen
"""
    loaded_elsewhere(path, meddling)


@pytest.mark.parametrize("architecture", MAKE)
def test_whatever_byte_is_wrong_is_one_sentence(tmp_path, architecture):
    path = saved(tmp_path, MAKE[architecture]())
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    random = Random(0)  # noqa: S311
    sentences = []
    for _ in range(300):
        spoilt = bytearray(content)
        for _ in range(random.randint(1, 3)):
            spoilt[random.randrange(end)] = random.randrange(256)
        path.write_bytes(spoilt)
        try:
            load_depth_head(path)
        except ValueError as error:
            sentences.append(str(error))
    assert all(said.startswith("made.safetensors") and said.isprintable() for said in sentences)
    assert len(sentences) > 200
