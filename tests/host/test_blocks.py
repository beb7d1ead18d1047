"""Block names on the host's models at their real depths."""

import time

import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from inner_guidance.host.taps.blocks import AttentionLayer, attention_blocks, parse_blocks
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.tiny_configs import SD15, SDXL

pytestmark = pytest.mark.oldest_host


def unet(config):
    """The modules alone, without memory for weights."""
    return UNetModel(**config, device="meta")


@pytest.fixture(scope="module")
def sd15():
    return attention_blocks(unet(SD15))


@pytest.fixture(scope="module")
def sdxl():
    depths = {
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    }
    return attention_blocks(unet(SDXL | depths))


def test_blocks_of_sd15(sd15):
    assert list(sd15) == [f"d{i}" for i in range(6)] + ["m0"] + [f"u{i}" for i in range(9)]
    assert [layer.number for name in sd15 for layer in sd15[name]] == [1, 2, 4, 5, 7, 8, 0, *range(3, 12)]


def test_blocks_of_sdxl(sdxl):
    assert {name: len(layers) for name, layers in sdxl.items()} == {
        name: depth
        for names, depth in (("d0 d1 u3 u4 u5", 2), ("d2 d3 m0 u0 u1 u2", 10))
        for name in names.split()
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m0", ["m0"]),
        ("d2", ["d2"]),
        ("u0-u2", ["u0", "u1", "u2"]),
        (" U1 , m0,", ["m0", "u1"]),
        ("m0,\n\tu1", ["m0", "u1"]),
        ("m0," * 1000, ["m0"]),
        ("m0,m0,u3,u2-u3", ["m0", "u2", "u3"]),
    ],
)
def test_names(sdxl, text, expected):
    assert parse_blocks(text, sdxl) == tuple(layer for name in expected for layer in sdxl[name])


def test_one_transformer_of_a_block(sdxl):
    assert parse_blocks("m0.3,u3.1", sdxl) == (AttentionLayer("middle", 0, 3), AttentionLayer("output", 3, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u9", r"no block u9. It has d0-d3, m0, u0-u5\."),
        ("d2-d7", r"no block d4. It has"),
        ("m1", r"no block m1"),
        ("b12", r"no block b12"),
        ("d0-u2", r"'d0-u2' is not a range. Write it as u0-u2"),
        ("u2-u0", r"'u2-u0' is not a range"),
        ("middle", r"'middle' is not a block name. Write names such as m0"),
        ("", r"'' is not a block name"),
        ("m0,,u1", r"'' is not a block name"),
        ("m0.10", r"block m0 has 10 transformers, m0.0 to m0.9; there is no m0.10"),
        ("u0-u999999999", r"no block u6\. It has d0-d3, m0, u0-u5\."),
        ("u0-u999999999999", r"'u0-u999999999999' is not a block name"),
        ("u999999999", r"no block u999999999\. It has"),
        ("m0.999999999", r"there is no m0.999999999\."),
        ("m0.0-m0.999999999999", r"'m0.0-m0.999999999999' is not a block name"),
        ("u" + "9" * 3000, r"'u9{38}…' is not a block name"),
        (
            "m0," * 10**6 + "m0",
            r"blocks is 3000002 characters long, 4000 are the most: write ranges\. It has",
        ),
        ("u\u0661", "'u\u0661' is not a block name"),
        ("m0\x1b[31m", r"'m0\\x1b\[31m' is not a block name"),
    ],
)
def test_wrong_names_say_what_there_is(sdxl, text, message):
    started = time.monotonic()
    with pytest.raises(ValueError, match=message) as error:
        parse_blocks(text, sdxl)
    assert time.monotonic() - started < 2
    assert len(str(error.value)) < 400


def test_block_of_one_transformer(sd15):
    with pytest.raises(ValueError, match=r"block m0 has 1 transformer, m0.0; there is no m0.1"):
        parse_blocks("m0.1", sd15)


def test_model_without_a_middle_block():
    """Segmind's tiny UNets."""
    assert "m0" not in attention_blocks(unet(SD15 | {"transformer_depth_middle": -2}))


def test_model_with_attention_in_its_middle_alone(sd15):
    alone = {"m0": sd15["m0"]}

    assert parse_blocks("m0", alone) == sd15["m0"]
    with pytest.raises(ValueError, match=r"no block u0. It has m0\."):
        parse_blocks("u0", alone)


def test_model_of_another_kind():
    with pytest.raises(ValueError, match=r"Linear, cannot be read: use a model that docs/models\.md"):
        attention_blocks(torch.nn.Linear(2, 2))


def test_node_refuses_before_any_sampling():
    with pytest.raises(ValueError, match=r"no block u7. It has d0-d1, m0, u0-u3"):
        tiny.guided(tiny.patcher(), blocks="u7")
