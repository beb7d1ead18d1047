"""Words of a prompt and their tokens, with the host's own tokenizers and the demo model's."""

from types import SimpleNamespace

import pytest
from comfy.text_encoders import flux
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from inner_guidance.host.recording.prompt_words import prompt_words
from inner_guidance.tests.support.host_tokenizers import clip, context

pytestmark = pytest.mark.oldest_host

PROMPT = "a (red sphere:1.3), café in Zürich, half-timbered houses, an unbelievable red box"


def decoded(name, key, word):
    """The text of the tokens in a word's places, as the vocabulary's own decoder writes it."""
    tokenizer = getattr(clip(name).tokenizer, key, None) or getattr(clip(name).tokenizer, f"clip_{key}")
    stream = context(name, key, PROMPT)
    return tokenizer.tokenizer.decode([stream[place] for place in word.places]).strip().lower()


def by_text(words):
    return {word.text: word for word in words}


@pytest.mark.parametrize(
    ("name", "key", "length"),
    [("sd1", "l", 77), ("sdxl", "g", 77), ("flux", "t5xxl", 256), ("zimage", "qwen3_4b", 0)],
)
def test_every_word_has_the_tokens_that_spell_it(name, key, length):
    words = by_text(prompt_words(clip(name), PROMPT, length or len(context(name, key, PROMPT))))

    assert {"red", "sphere", "café", "in", "zürich", "houses", "unbelievable", "box"} <= words.keys()
    assert not {",", "(", "user", "assistant", "<|startoftext|>"} & words.keys()
    for text in ("sphere", "café", "zürich", "houses", "unbelievable", "box"):
        assert decoded(name, key, words[text]) == text
    assert len(words["zürich"].places) > (0 if name == "flux" else 1)
    assert len(words["red"].places) == 2  # it occurs twice


def test_words_are_in_the_order_of_the_prompt():
    words = [word.text for word in prompt_words(clip("sd1"), PROMPT, 77)]

    assert words == [
        "a",
        "red",
        "sphere",
        "café",
        "in",
        "zürich",
        "half",
        "timbered",
        "houses",
        "an",
        "unbelievable",
        "box",
    ]


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux", "zimage"])
def test_wanted_words_and_phrases(name):
    key = {"sd1": "l", "sdxl": "l", "flux": "t5xxl", "zimage": "qwen3_4b"}[name]
    length = len(context(name, key, PROMPT))
    words = by_text(prompt_words(clip(name), PROMPT, length))

    red, phrase, hyphened = prompt_words(clip(name), PROMPT, length, "red,  Red box , half-timbered")

    assert red.places == words["red"].places
    assert phrase.text == "Red box"
    assert phrase.places == (words["red"].places[1], *words["box"].places)
    assert decoded(name, key, hyphened).replace(" ", "").replace("-", "") == "halftimbered"


def test_an_unknown_word_is_answered_with_those_there_are():
    with pytest.raises(
        ValueError, match=r"has no 'unicorn'. Its words are: a, red, sphere, café, in, zürich"
    ):
        prompt_words(clip("sd1"), PROMPT, 77, "red, unicorn")
    with pytest.raises(ValueError, match="has no 'sphere red'"):
        prompt_words(clip("sd1"), PROMPT, 77, "sphere red")


def test_long_prompts_span_sections():
    long = "cat, " * 40 + "dog, " * 40
    n = len(context("sd1", "l", long))
    assert n == 3 * 77

    cat, dog = prompt_words(clip("sd1"), long, n)

    stream = context("sd1", "l", long)
    assert len(cat.places) == len(dog.places) == 40
    assert len({stream[place] for place in cat.places}) == len({stream[place] for place in dog.places}) == 1
    assert max(dog.places) > 2 * 77


def test_sd3_knows_a_word_by_two_encoders():
    t5 = by_text(prompt_words(clip("flux"), PROMPT, 256))["zürich"].places
    clip_l = by_text(prompt_words(clip("sd1"), PROMPT, 77))["zürich"].places

    both = by_text(prompt_words(clip("sd3"), PROMPT, 154))["zürich"].places

    assert both == (*clip_l, *(77 + place for place in t5))


def test_qwen_image_drops_the_beginning_of_its_template():
    key, prompt = "qwen25_7b", "the color of Zürich"
    stream = context("qwen", key, prompt)
    start = stream.index(872) + 2  # the text encoder cuts behind "user" and a new line

    words = by_text(prompt_words(clip("qwen"), prompt, len(stream) - start))

    # "the" and "color" are in the template too.
    assert {text: word.places for text, word in words.items()} == {
        "the": (0,),
        "color": (1,),
        "of": (2,),
        "zürich": (3, 4, 5),
    }
    vocabulary = clip("qwen").tokenizer.qwen25_7b.tokenizer
    assert vocabulary.decode(stream[start + 3 : start + 6]).strip() == "Zürich"


def tiny_mistral(data):
    """What the host makes of Mistral's file: bytes, merged into these words, and the template's marks."""
    marks = ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    vocabulary, merges = ["<unk>", "<s>", "</s>", *marks, *sorted(ByteLevel.alphabet())], []
    for word in ("Ġred", "Ġbox", "Ġof", "Ġimage", "image"):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", *marks])
    return {"tokenizer_object": tokenizer}


def test_flux2_fills_its_context_up_in_front(monkeypatch):
    monkeypatch.setattr(flux, "load_mistral_tokenizer", tiny_mistral)
    monkeypatch.setattr(flux, "LlamaTokenizerFast", PreTrainedTokenizerFast)
    tokenizer = flux.Flux2Tokenizer()
    mistral = SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)
    prompt = "image of a red box"
    (stream,) = (tokens for (tokens,) in mistral.tokenize(prompt).values())
    assert 100 < len(stream) < 512

    words = by_text(prompt_words(mistral, prompt, 512))

    # "a" and "image" are in the template, too; the end of it, [/INST], is the last token.
    assert list(words) == ["image", "of", "a", "red", "box"]
    assert words["image"].places[-1] < words["of"].places[0]
    assert (words["red"].places, words["box"].places) == ((509,), (510,))
    assert words["of"].places == (506,)


def test_a_templates_words_are_not_the_prompts():
    key, prompt = "qwen3_4b", "a user of the assistant"
    stream = context("zimage", key, prompt)

    user, assistant = prompt_words(clip("zimage"), prompt, len(stream), "user, assistant")

    assert (len(user.places), len(assistant.places)) == (1, 1)
    assert user.places[0] + 3 == assistant.places[0]


def test_the_demo_models_words():
    prompt = "a red sphere and a green box, grey checker floor, white wall, red cylinder"

    words = by_text(prompt_words(clip("demo"), prompt, 16))
    (phrase,) = prompt_words(clip("demo"), prompt, 16, "checker floor")

    assert list(words) == [
        "red",
        "sphere",
        "green",
        "box",
        "grey",
        "checker",
        "floor",
        "white",
        "wall",
        "cylinder",
    ]
    assert words["red"].places == (0, 9)
    assert phrase.places == (5, 6)


@pytest.mark.parametrize(("name", "lengths"), [("sd1", "77"), ("flux", "77 or 256"), ("demo", "16")])
def test_another_prompt_than_the_samplers(name, lengths):
    with pytest.raises(
        ValueError, match=f"had 100 tokens, and the CLIP makes {lengths} of this one. Connect the CLIP"
    ):
        prompt_words(clip(name), "a red sphere", 100)


@pytest.mark.parametrize("name", ["sd1", "demo", "zimage"])
def test_a_prompt_without_words(name):
    key, *_ = clip(name).tokenize("")
    with pytest.raises(ValueError, match="there is no word in it"):
        prompt_words(clip(name), " , ", len(context(name, key, " , ")), "")


def test_joined_prompts():
    with pytest.raises(ValueError, match="prompts that ConditioningConcat has joined cannot be told apart"):
        prompt_words(clip("sd1"), PROMPT, 154)
