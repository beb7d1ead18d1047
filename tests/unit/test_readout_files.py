"""Depth head files in the public layout of Readout Guidance: whole, foreign and malicious."""

import io
import os
import pickle
import time
import zipfile
from random import Random

import pytest
import torch

from inner_guidance.depth_head.head import SD1, SDXL
from inner_guidance.depth_head.head_files import load_depth_head, save_depth_head
from inner_guidance.tests.support.another_process import loaded_elsewhere
from inner_guidance.tests.support.readout_reference import (
    SD15_CHANNELS,
    SDXL_CHANNELS,
    public_checkpoint,
    public_weights,
    readout_reference_of,
)


@pytest.mark.parametrize(("channels", "family"), [(SD15_CHANNELS, SD1), (SDXL_CHANNELS, SDXL)])
def test_a_public_readout_head_computes_what_its_layout_says(tmp_path, channels, family):
    path = tmp_path / "readout_spatial_depth.pt"
    torch.save(public_checkpoint(channels), path)
    generator = torch.Generator().manual_seed(1)
    features = {
        f"r{i}": torch.randn(1, c, 2 ** (1 + i // 3), 2 ** (1 + i // 3), generator=generator)
        for i, c in enumerate(channels)
    }
    embedding = torch.randn(1, 1280, generator=generator)

    loaded = load_depth_head(path)
    with torch.no_grad():
        depth = loaded.network(features | {"time": embedding}, torch.zeros(1), (8, 6))
    expected = readout_reference_of(public_weights(channels), list(features.values()), embedding, (8, 6))

    assert loaded.model_family == family
    assert loaded.network.branch_taps["weak"] == (f"r{len(channels) // 2}", "time")
    torch.testing.assert_close(depth.double(), expected, rtol=1e-4, atol=1e-5)
    assert depth.std() > 0.005

    ours = tmp_path / "as_ours.safetensors"
    save_depth_head(ours, loaded)
    again = load_depth_head(ours)
    with torch.no_grad():
        assert torch.equal(again.network(features | {"time": embedding}, torch.zeros(1), (8, 6)), depth)
    assert again.model_family == family


def test_a_file_name_in_capitals_is_a_public_head_too(tmp_path):
    """The host lists files whatever the case of their ending."""
    path = tmp_path / "READOUT_SDV15.PT"
    torch.save(public_checkpoint(SD15_CHANNELS), path)
    assert load_depth_head(path).model_family == SD1


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, save in (
        ("zip.pt", torch.save),
        ("plain.pt", lambda o, p: p.write_bytes(pickle.dumps(o, protocol=2))),
    ):
        path = tmp_path / name
        save(public_checkpoint(SDXL_CHANNELS[:1]) | {"extra": Malicious()}, path)
        with pytest.raises(ValueError, match=f"{name} is damaged, or holds more than weights"):
            load_depth_head(path)
    assert not (tmp_path / "owned").exists()


def changed(**config):
    checkpoint = public_checkpoint(())
    return checkpoint | {"config": checkpoint["config"] | config}


@pytest.mark.parametrize(
    ("checkpoint", "sentence"),
    [
        ({}, "is not a depth head of Readout Guidance"),
        (torch.zeros(3), "is not a depth head of Readout Guidance"),
        ({"config": {}, "aggregation_network": {}}, "is not a depth head of Readout Guidance"),
        (changed(save_timestep=[0, 1]), "is not a depth head of Readout Guidance"),
        (changed(projection_dim=10**9), "is not a depth head of Readout Guidance"),
        (changed(dims="1280"), "is not a depth head of Readout Guidance"),
        (changed(dims=[[64]]), "is not a depth head of Readout Guidance"),
        (changed(projection_dim=torch.zeros(2)), "is not a depth head of Readout Guidance"),
        (
            changed(dims=list(SDXL_CHANNELS))
            | {"aggregation_network": {1: torch.zeros(1), "a": torch.zeros(1)}},
            "is not a depth head of Readout Guidance",
        ),
        (changed(dims=[64, 64]), "of other blocks than those of Stable Diffusion 1.x or Stable Diffusion XL"),
        (changed(dims=list(SDXL_CHANNELS)), r"is damaged \(bottleneck_layers.0.conv1.norm.bias is missing"),
    ],
)
def test_another_checkpoint_is_one_sentence(tmp_path, checkpoint, sentence):
    path = tmp_path / "other.pt"
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=sentence) as error:
        load_depth_head(path)
    assert "\n" not in str(error.value)


def test_what_the_authors_files_also_hold_is_no_obstacle(tmp_path):
    checkpoint = public_checkpoint(SDXL_CHANNELS)
    checkpoint["aggregation_network"]["logit_scale"] = torch.tensor(2.6)
    torch.save(checkpoint, tmp_path / "a.pt")
    assert load_depth_head(tmp_path / "a.pt").model_family == SDXL


def other_tensors():
    values = torch.arange(4.0)
    return {
        "float8": values.to(torch.float8_e4m3fn),
        "sparse": torch.eye(3).to_sparse(),
        "quantised": torch.quantize_per_tensor(values, 0.1, 0, torch.qint8),
        "meta": values.to("meta"),
        "nested": torch.nested.nested_tensor([values, values[:2]]),
        "complex": values.to(torch.complex64),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["float8", "sparse", "quantised", "meta", "nested", "complex"])
def test_a_tensor_of_another_kind_is_one_sentence(tmp_path, kind):
    checkpoint = public_checkpoint(SDXL_CHANNELS)
    checkpoint["aggregation_network"]["mixing_weights"] = other_tensors()[kind]
    torch.save(checkpoint, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"^a\.pt is damaged, or holds more than weights"):
        load_depth_head(tmp_path / "a.pt")


def test_a_half_precision_file_is_read(tmp_path):
    checkpoint = public_checkpoint(SDXL_CHANNELS)
    weights = checkpoint["aggregation_network"]
    checkpoint["aggregation_network"] = {name: weight.half() for name, weight in weights.items()}
    torch.save(checkpoint, tmp_path / "a.pt")
    mixing = load_depth_head(tmp_path / "a.pt").network.mixing_weights
    assert torch.equal(mixing, weights["mixing_weights"].half().float())


@pytest.mark.skipif(os.name == "nt", reason="the resource module is POSIX's")
def test_a_tensor_that_repeats_one_number_is_not_written_out(tmp_path):
    """4 GB, once it is copied."""
    checkpoint = public_checkpoint(SDXL_CHANNELS)
    checkpoint["aggregation_network"]["mixing_weights"] = torch.zeros(1).expand(10**9)
    torch.save(checkpoint, tmp_path / "a.pt")
    said, megabytes = loaded_elsewhere(tmp_path / "a.pt")
    assert "mixing_weights is not as its description says" in said
    assert megabytes < 300


def archive(path, pickled, compression=zipfile.ZIP_STORED, storage=b""):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", storage)
        file.writestr("archive/version", "3\n")


def tensor_pickle(size):
    """A checkpoint of one float32 tensor, as torch.save writes it."""
    saved = io.BytesIO()
    torch.save({"w": torch.zeros(1)}, saved)
    with zipfile.ZipFile(saved) as file:
        (name,) = (name for name in file.namelist() if name.endswith("data.pkl"))
        return file.read(name).replace(b"K\x01t", b"J" + size.to_bytes(4, "little") + b"t")


def hexadecimal(doublings):
    """Bytes, encoded again and again."""
    encode = b"c_codecs\nencode\n"
    return (
        b"\x80\x02"
        + encode * (doublings + 1)
        + b"X\x01\x00\x00\x000"
        + b"X\x06\x00\x00\x00latin1\x86R"
        + b"X\x03\x00\x00\x00hex\x86R" * doublings
        + b"."
    )


BOMBS = {
    "compressed": lambda path: archive(path, tensor_pickle(2**26), zipfile.ZIP_DEFLATED, bytes(2**28)),
    "encoded": lambda path: archive(path, hexadecimal(29)),
    "zeros": lambda path: archive(path, b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x40\x85R."),
    "small objects": lambda path: archive(path, b"\x80\x02(" + b"]" * 10**7 + b"l."),
    "nested": lambda path: archive(path, b"\x80\x02})" + b"\x85" * 200_000 + b"Ns."),
    "many entries": lambda path: many_entries(path),
    "entries on top of each other": lambda path: overlapping(path),
}


def many_entries(path):
    with zipfile.ZipFile(path, "w") as file:
        for number in range(30_000):
            file.writestr(f"archive/data/{number}", b"")


def overlapping(path):
    """200 names in the directory for one entry of 4 MB."""
    archive(path, b"\x80\x02N.", storage=bytes(2**22))
    with zipfile.ZipFile(path, "a") as file:
        first = file.getinfo("archive/data/0")
        for number in range(1, 200):
            entry = zipfile.ZipInfo(f"archive/data/{number}")
            entry.file_size = entry.compress_size = first.file_size
            entry.CRC, entry.header_offset = first.CRC, first.header_offset
            file.filelist.append(entry)
        file._didModify = True


@pytest.mark.parametrize("bomb", BOMBS)
def test_torch_is_given_no_file_that_grows(tmp_path, monkeypatch, bomb):
    path = tmp_path / "bomb.pt"
    BOMBS[bomb](path)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch was given the file"))
    started = time.monotonic()
    with pytest.raises(
        ValueError, match=r"^bomb\.pt is damaged, or holds more than weights and is therefore not"
    ):
        load_depth_head(path)
    assert time.monotonic() - started < 2


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the resource module is POSIX's")
@pytest.mark.parametrize("bomb", ["compressed", "nested"])
def test_a_file_takes_no_more_memory_than_its_size_says(tmp_path, bomb):
    path = tmp_path / "bomb.pt"
    BOMBS[bomb](path)
    said, megabytes = loaded_elsewhere(path)
    assert said.startswith("bomb.pt is damaged")
    assert megabytes < 3 * path.stat().st_size / 2**20 + 20


def test_a_storage_that_is_smaller_than_its_tensor_is_one_sentence(tmp_path):
    archive(tmp_path / "a.pt", tensor_pickle(2**28), storage=bytes(4))
    with pytest.raises(ValueError, match=r"^a\.pt is damaged"):
        load_depth_head(tmp_path / "a.pt")


def test_whatever_byte_is_wrong_is_one_sentence(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(public_checkpoint(()), path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        entry = next(e for e in file.infolist() if e.filename.endswith("data.pkl"))
        pickled = file.read(entry)
    random = Random(0)  # noqa: S311
    sentences = []
    for attempt in range(600):
        whole = attempt % 2
        spoilt = bytearray(content if whole else pickled)
        for _ in range(random.randint(1, 3)):
            spoilt[random.randrange(len(spoilt))] = random.randrange(256)
        if whole:
            path.write_bytes(spoilt)
        else:
            archive(path, bytes(spoilt))
        with pytest.raises(ValueError, match=r"^a\.pt is ") as error:
            load_depth_head(path)
        sentences.append(str(error.value))
    assert all(said.isprintable() for said in sentences)
