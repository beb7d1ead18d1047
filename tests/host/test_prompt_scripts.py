"""Words of a prompt in other scripts than Latin, with accents, and with any punctuation and spaces."""

import pytest

from inner_guidance.host.recording.prompt_words import prompt_words
from inner_guidance.tests.support.host_tokenizers import clip, context

pytestmark = pytest.mark.oldest_host

ACCENT, LIGATURE, CHINESE_COMMA = "\u0301", "\ufb01", "\uff0c"


@pytest.mark.parametrize(
    ("name", "key", "prompt", "words"),
    [
        # Composed by the tokenizers, as Macs do not write it.
        ("sd1", "l", f"cafe{ACCENT} red", ["café", "red"]),
        ("flux", "t5xxl", f"cafe{ACCENT} {LIGATURE}ne red", ["café", "fine", "red"]),
        ("zimage", "qwen3_4b", f"cafe{ACCENT} red", ["café", "red"]),
        # Punctuation and spaces within a token.
        ("zimage", "qwen3_4b", "(red) sphere(blue)", ["red", "sphere", "blue"]),
        ("zimage", "qwen3_4b", "a\tred\tbox\r\nsun\u00a0moon", ["a", "red", "box", "sun", "moon"]),
        ("flux", "t5xxl", "\u201cred\u201d box \u2014 sun", ["red", "box", "sun"]),
        ("sd1", "l", "\u201cred\u201d box \u2014 sun", ["red", "box", "sun"]),
        # A language without spaces.
        ("zimage", "qwen3_4b", f"红色{CHINESE_COMMA}蓝色盒子", ["红色", "蓝色", "盒子"]),
    ],
)
def test_words_of_any_script_and_spacing(name, key, prompt, words):
    length = 77 if name == "sd1" else len(context(name, key, prompt))

    assert [word.text for word in prompt_words(clip(name), prompt, length)] == words


def test_chinese_phrases_with_chinese_commas():
    prompt = f"红色球体{CHINESE_COMMA}蓝色盒子"
    stream = context("zimage", "qwen3_4b", prompt)

    sphere, box = prompt_words(clip("zimage"), prompt, len(stream), f"红色球体{CHINESE_COMMA}盒子")

    assert (sphere.text, box.text) == ("红色球体", "盒子")
    vocabulary = clip("zimage").tokenizer.qwen3_4b.tokenizer
    assert vocabulary.decode([stream[place] for place in sphere.places]) == "红色球体"
    assert vocabulary.decode([stream[place] for place in box.places]) == "盒子"


@pytest.mark.parametrize("prompt", ["красный", "红色球体", "赤い球", "빨간 공", "שלום"])
def test_letters_that_the_text_encoder_does_not_know(prompt):
    """T5 has one token, for the unknown, for each run of them; of Russian it knows a few letters."""
    if prompt == "красный":
        (word,) = prompt_words(clip("flux"), prompt, 256)
        assert len(word.places) > 1
        return
    with pytest.raises(ValueError, match="text encoder has no tokens for its letters"):
        prompt_words(clip("flux"), prompt, 256)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("ガンダム 東京タワー", "東京"),  # " 東京" has other tokens than "東京"
        ("鱻红色球体", "红色"),  # behind a character of several tokens
        ("一只𠮷猫", "猫"),
        ("红色的球", "红色"),  # a part of the token "红色的"
    ],
)
def test_phrases_of_languages_without_spaces_are_found_wherever_tokens_cut_them(prompt, wanted):
    stream = context("zimage", "qwen3_4b", prompt)

    (word,) = prompt_words(clip("zimage"), prompt, len(stream), wanted)

    written = clip("zimage").tokenizer.qwen3_4b.tokenizer.decode([stream[place] for place in word.places])
    assert wanted in written
    assert len(written.strip()) <= len(wanted) + 1
