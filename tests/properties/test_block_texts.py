"""parse_blocks, whatever is typed: an answer at once, of blocks that the model has, or one sentence."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inner_guidance.host.taps.blocks import attention_blocks, feature_blocks, parse_blocks
from inner_guidance.tests.support import tiny_models as tiny


def blocks_of(kind, model_type, read):
    return read(tiny.patcher(kind, model_type).get_model_object("diffusion_model"))


AVAILABLE = {
    "attention": blocks_of("sdxl", "EPS", attention_blocks),
    "features": blocks_of("small", "EPS", feature_blocks),
    "joint": blocks_of("flux", "FLUX", attention_blocks),
}
LIKE_BLOCKS = st.text(alphabet="dmuborix0123456789.,- ", max_size=40)


@pytest.mark.parametrize("available", AVAILABLE.values(), ids=AVAILABLE)
@settings(max_examples=60)
@given(text=LIKE_BLOCKS | st.text(max_size=30))
@example("m0-m99999999999999999999")
@example("u0-u999999999")
@example("9" * 5000)
@example("m0." + "9" * 4400)
@example("u0-" * 2000)
def test_any_text_is_answered_at_once(available, text):
    started = time.monotonic()
    try:
        layers = parse_blocks(text, available)
    except ValueError as error:
        assert 0 < len(str(error)) < 2000
        assert "\n" not in str(error)
    else:
        known = list(dict.fromkeys(layer for found in available.values() for layer in found))
        assert list(layers) == [layer for layer in known if layer in layers]
        assert layers
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize("available", AVAILABLE.values(), ids=AVAILABLE)
@given(data=st.data())
def test_names_in_any_order_and_spelling_are_their_layers(available, data):
    names = data.draw(st.lists(st.sampled_from(sorted(available)), min_size=1, max_size=5))
    spelled = [data.draw(st.sampled_from([name, name.upper(), f" {name} "])) for name in names]

    layers = parse_blocks(",".join(spelled), available)

    assert set(layers) == {layer for name in names for layer in available[name]}
    assert layers == parse_blocks(",".join(reversed(names)), available)
