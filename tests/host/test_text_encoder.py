"""demo/text.py as the host's CLIP: words, phrases, weights, prompts of any length."""

import logging

import pytest
import torch

from inner_guidance.demo import model as demo
from inner_guidance.demo.scenes import sample_scene
from inner_guidance.demo.text import CONTEXT_DIM, CONTEXT_LENGTH, VOCABULARY, SceneTokenizer
from nodes import CLIPTextEncode


@pytest.fixture(scope="module")
def clip():
    with torch.inference_mode():
        return demo.load_clip(demo.WEIGHTS / demo.TEXT_FILE)


def encode(clip, text):
    """(words, CONTEXT_DIM) context of a prompt, through the stock node."""
    ((context, extra),) = CLIPTextEncode().encode(clip, text)[0]
    assert extra["pooled_output"] is None
    return context[0]


def words(text):
    """The words of each section, without the padding."""
    sections = SceneTokenizer().tokenize_with_weights(text)["scene"]
    assert all(len(section) == CONTEXT_LENGTH for section in sections)
    return [[VOCABULARY[token] for token, _ in section if token] for section in sections]


def test_vocabulary_is_the_one_of_the_weights():
    in_order = (
        "sphere box cylinder floor wall red orange yellow green cyan blue purple pink white black "
        "beige grey brown plain checker striped"
    )
    assert ("", *in_order.split()) == VOCABULARY
    assert demo.read_weights(demo.WEIGHTS / demo.TEXT_FILE)["words.weight"].shape == (22, CONTEXT_DIM)


def test_captions_are_understood_whole(caplog):
    for seed in range(300):
        caption = sample_scene(seed).caption
        assert words(caption) == [caption.replace(",", "").split()]
    assert caplog.text == ""


def test_context_is_the_documented_formula(clip):
    weights = {name: w.double() for name, w in demo.read_weights(demo.WEIGHTS / demo.TEXT_FILE).items()}

    def w(word):
        return weights["words.weight"][VOCABULARY.index(word)]

    def context(word, phrase):
        both = torch.cat([w(word), sum(map(w, phrase), torch.zeros(CONTEXT_DIM, dtype=torch.float64))])
        hidden = weights["mix.weight"] @ both + weights["mix.bias"]
        return weights["out.weight"] @ (hidden / (1 + (-hidden).exp())) + weights["out.bias"] + w(word)

    found = encode(clip, "red sphere, grey checker floor, blue")
    sphere, floor, rest = ["red", "sphere"], ["grey", "checker", "floor"], ["blue"]
    expected = [context(word, phrase) for phrase in (sphere, floor, rest) for word in phrase]
    expected += [context("", [])] * (CONTEXT_LENGTH - len(expected))

    assert found.shape == (CONTEXT_LENGTH, CONTEXT_DIM)
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_colour_belongs_to_its_noun_alone(clip):
    sphere = encode(clip, "red sphere")[0]

    assert not torch.allclose(sphere, encode(clip, "red box")[0], atol=1e-3)
    torch.testing.assert_close(sphere, encode(clip, "blue box, red sphere, white wall")[2])


def test_empty_prompt_is_a_context(clip):
    context = encode(clip, "")

    assert context.shape == (CONTEXT_LENGTH, CONTEXT_DIM)
    assert torch.equal(context, context[:1].expand_as(context))


def test_weight_scales_the_distance_from_the_empty_prompt(clip):
    plain, empty = encode(clip, "red sphere, blue box"), encode(clip, "")
    heavier = encode(clip, "(red sphere:1.3), blue box")

    torch.testing.assert_close(heavier[:2], empty[:2] + 1.3 * (plain[:2] - empty[:2]))
    torch.testing.assert_close(heavier[2:], plain[2:])


def test_brackets_of_the_host():
    pairs = SceneTokenizer().tokenize_with_weights(r"(red sphere) ((blue box)) \(white wall\)")["scene"][0]

    assert [weight for token, weight in pairs if token] == pytest.approx([1.1, 1.1, 1.21, 1.21, 1, 1])


def test_unknown_words_are_ignored_with_one_warning(clip, caplog):
    with caplog.at_level(logging.WARNING):
        context = encode(clip, "a shiny red sphere on the dog, Blue BOX, shiny")
    # The host may warn too while it loads the encoder, of models that earlier tests keep.
    (warning,) = (message for message in caplog.messages if "demo model" in message)

    assert torch.equal(context, encode(clip, "red sphere, blue box"))
    assert "'shiny', 'dog'" in warning
    assert all(word in warning for word in VOCABULARY)
    assert not any(f"'{word}'" in warning for word in ("a", "on", "the", "blue", "box"))


def test_long_prompt_continues_in_another_section(clip):
    text = ", ".join(f"{colour} sphere" for colour in VOCABULARY[6:16]) + ", grey checker floor"
    first, second = words(text)

    assert first == text.replace(",", "").split()[:16]
    assert first + second == text.replace(",", "").split()
    assert encode(clip, text).shape == (2 * CONTEXT_LENGTH, CONTEXT_DIM)


def test_phrase_is_never_cut_in_two():
    first, second = words("red sphere, " * 7 + "grey checker floor")

    assert len(first) == 14
    assert second == ["grey", "checker", "floor"]


def test_adjectives_without_end(clip):
    assert [len(section) for section in words("red " * 40 + "sphere")] == [16, 16, 9]
    assert encode(clip, "red " * 40 + "sphere").isfinite().all()


def test_word_numbers_and_the_way_back():
    tokenizer = SceneTokenizer()
    section = tokenizer.tokenize_with_weights("red sphere, dog, box", return_word_ids=True)["scene"][0]

    assert [number for _, _, number in section[:4]] == [1, 2, 4, 0]
    assert [word for _, word in tokenizer.untokenize(section)][:3] == ["red", "sphere", "box"]
