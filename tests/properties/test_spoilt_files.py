"""Files of heads and priors, spoilt anywhere: the network that was saved, or one sentence."""

import json
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from inner_guidance.depth_head.architectures.pixel_mlp import PixelMLP
from inner_guidance.depth_head.architectures.readout import Readout
from inner_guidance.depth_head.head import DepthHead
from inner_guidance.depth_head.head_files import load_depth_head, save_depth_head
from inner_guidance.depth_head.prior import DepthPrior
from inner_guidance.depth_head.prior_files import load_depth_prior, save_depth_prior
from inner_guidance.tests.support.depth_models import TinyPrior


def pixel_mlp(path):
    save_depth_head(path, DepthHead(PixelMLP({"o1": 8, "o2": 4}, ("o1", "o2"), ("o2",)).eval(), "a model"))


def readout(path):
    network = Readout({"r0": 8, "r1": 128}, weak=("r1",), embedding=("time", 16), projection=128).eval()
    save_depth_head(path, DepthHead(network, "a model"))


def prior(path):
    save_depth_prior(path, DepthPrior(TinyPrior(), 32))


KINDS = {
    "pixel_mlp": (pixel_mlp, load_depth_head),
    "readout": (readout, load_depth_head),
    "prior": (prior, partial(load_depth_prior, make_unet=TinyPrior)),
}


def weights(found):
    return (found.unet if isinstance(found, DepthPrior) else found.network).state_dict()


@pytest.fixture(params=KINDS)
def saved(request, tmp_path):
    """The path of a file, and what loads it."""
    write, read = KINDS[request.param]
    path = tmp_path / "saved.safetensors"
    write(path)
    return path, read


def refused(path, read, content):
    """Whether a file of this content is refused, in a sentence; if not, it is finite."""
    other = path.with_name("spoilt.safetensors")
    other.write_bytes(content)
    try:
        found = read(other)
    except ValueError as error:
        assert str(error).startswith("spoilt.safetensors")
        assert len(str(error)) < 600
        assert "\n" not in str(error)
        return True
    assert all(t.isfinite().all() for t in weights(found).values())
    return False


def parts(content):
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end])["__metadata__"], load(content)


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(saved, share):
    content = saved[0].read_bytes()

    assert refused(*saved, content[: int(share * len(content))])


@given(places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4), byte=st.integers(0, 255))
def test_bytes_that_changed_are_refused_or_finite(saved, places, byte):
    content = bytearray(saved[0].read_bytes())
    for place in places:
        content[int(place * len(content))] = byte

    refused(*saved, bytes(content))


@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_header_that_changed_is_refused_or_finite(saved, place, byte):
    content = bytearray(saved[0].read_bytes())
    content[int(place * (8 + int.from_bytes(content[:8], "little")))] = byte

    refused(*saved, bytes(content))


@given(data=st.data())
def test_a_renamed_missing_or_spoilt_tensor_is_refused(saved, data):
    metadata, tensors = parts(saved[0].read_bytes())
    name = data.draw(st.sampled_from(sorted(tensors)))
    match data.draw(st.sampled_from(["renamed", "missing", "nan", "shape", "more"])):
        case "renamed":
            tensors[f"{name}_"] = tensors.pop(name)
        case "missing":
            del tensors[name]
        case "nan":
            tensors[name] = torch.full(tensors[name].shape, torch.nan)
        case "shape":
            tensors[name] = torch.zeros(*tensors[name].shape, 2)
        case "more":
            tensors[data.draw(st.text(st.characters(codec="ascii"), min_size=1, max_size=9))] = torch.zeros(1)

    assert refused(*saved, save(tensors, metadata))


@given(data=st.data())
def test_any_text_in_the_metadata_is_refused_or_finite(saved, data):
    metadata, tensors = parts(saved[0].read_bytes())
    entry = data.draw(st.sampled_from(sorted(metadata)))
    values = st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=4,
    )
    metadata[entry] = data.draw(st.text(max_size=20) | values.map(json.dumps))

    refused(*saved, save(tensors, metadata))
