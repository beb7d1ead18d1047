"""Words of a prompt and their tokens, with the host's own tokenizers and the demo model's."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from comfy import sd1_clip, sdxl_clip
from comfy.text_encoders import flux, qwen_image, sd3_clip, z_image
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from inner_guidance.demo.text import SceneTokenizer
from inner_guidance.host.recording.prompt_words import prompt_words

pytestmark = pytest.mark.oldest_host

PROMPT = "a (red sphere:1.3), café in Zürich, half-timbered houses, an unbelievable red box"
TOKENIZERS = {
    "sd1": sd1_clip.SD1Tokenizer,
    "sdxl": sdxl_clip.SDXLTokenizer,
    "sd3": sd3_clip.SD3Tokenizer,
    "flux": flux.FluxTokenizer,
    "qwen": qwen_image.QwenImageTokenizer,
    "zimage": z_image.ZImageTokenizer,
    "demo": SceneTokenizer,
}


@cache
def clip(name):
    """What of a CLIP tokenizes: comfy.sd.CLIP hands the text to its tokenizer as it is."""
    tokenizer = TOKENIZERS[name]()
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)


def context(name, key, prompt=PROMPT):
    """The token numbers of a prompt, as the text encoder gets them."""
    return [token for section in clip(name).tokenize(prompt)[key] for token, _ in section]


def decoded(name, key, word):
    """The text of the tokens in a word's places, as the vocabulary's own decoder writes it."""
    tokenizer = getattr(clip(name).tokenizer, key, None) or getattr(clip(name).tokenizer, f"clip_{key}")
    stream = context(name, key)
    return tokenizer.tokenizer.decode([stream[place] for place in word.places]).strip().lower()


def by_text(words):
    return {word.text: word for word in words}


@pytest.mark.parametrize(
    ("name", "key", "length"),
    [("sd1", "l", 77), ("sdxl", "g", 77), ("flux", "t5xxl", 256), ("zimage", "qwen3_4b", 0)],
)
def test_every_word_has_the_tokens_that_spell_it(name, key, length):
    words = by_text(prompt_words(clip(name), PROMPT, length or len(context(name, key))))

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
    length = len(context(name, key))
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


@pytest.fixture
def with_embeddings(monkeypatch):
    """SD 1's CLIP with embeddings of three vectors each."""
    files = {name: torch.full((3, 768), float(number)) for number, name in enumerate(("style", "Bad-hands"))}
    monkeypatch.setattr(sd1_clip, "load_embed", lambda name, *_: files.get(name))
    tokenizer = sd1_clip.SD1Tokenizer(embedding_directory="there")
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)


def test_an_embedding_is_one_word(with_embeddings):
    words = by_text(prompt_words(with_embeddings, "a cat embedding:style dog", 77))

    assert list(words) == ["a", "cat", "embedding:style", "dog"]
    assert words["embedding:style"].places == (3, 4, 5)
    assert words["dog"].places == (6,)


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        ("embedding:style", (1, 2, 3, 9, 10, 11)),
        ("embedding:bad-hands", ()),
        ("embedding:Bad-hands", (5, 6, 7)),
        ("cat embedding:style", (8, 9, 10, 11)),
        ("embedding", (1, 2, 3, 5, 6, 7, 9, 10, 11)),
    ],
)
def test_embeddings_have_the_places_of_their_own_vectors(wanted, places, with_embeddings):
    """The tokens of "embedding:style, (embedding:Bad-hands:1.2) cat embedding:style" but for the start."""
    prompt = "embedding:style, (embedding:Bad-hands:1.2) cat embedding:style"

    if not places:
        with pytest.raises(ValueError, match="words are: embedding:style, embedding:Bad-hands, cat"):
            prompt_words(with_embeddings, prompt, 77, wanted)
        return
    (word,) = prompt_words(with_embeddings, prompt, 77, wanted)
    assert word.places == places


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


def test_joined_prompts():
    with pytest.raises(ValueError, match="prompts that ConditioningConcat has joined cannot be told apart"):
        prompt_words(clip("sd1"), PROMPT, 154)
