"""Finds the tokens of each word of a prompt.

Cross-attention has the tokens of a prompt by their places in the context. The host's tokenizers say which
tokens these are, and from which weighted segment, "(red sphere:1.2)", but not from which word. Vocabularies
mark where words begin or end:

    CLIP              red</w>    a word ends
    T5, Gemma         ▁red       a word begins
    Qwen, Llama 3,    Ġred       a word begins
    Mistral
    the demo model    red        a token is a word, and a segment of its own
"""

import re
import string
import unicodedata
from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch

WORD_BEGINS = ("▁", "Ġ")
WORD_ENDS = "</w>"
# Chinese and Japanese have no spaces: each of their tokens is a word, and a phrase may begin within one.
UNSPACED = re.compile("[\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\U00020000-\U000323af]")
COMMA = re.compile("[,\uff0c\u3001]")
SPECIAL_TOKEN = re.compile(r"<.+>|\[/?[A-Z_]+\]")
EMBEDDING = "embedding"
EMBEDDED = re.compile(rf"{EMBEDDING}:([^\s,:()<\[]+)")  # the name of one in a prompt
WORDLESS = "."  # a prompt; for an empty one, Boogu has another template

FILLED_LENGTH = 512  # to which FLUX.2 and Anima fill a shorter context
ANIMA_ENCODER = "qwen3_06b"  # beside it, the tokens of T5 ask for the places of the context
SHORTEST_TEMPLATE = 3  # tokens before the prompt: <|im_start|>user and a new line

# Number in the vocabulary or vector of an embedding, weight, segment: 0 for start, end and padding.
Token = tuple[Any, float, int]


class Word(NamedTuple):
    """A word, or several that follow one another, and the places of its tokens in the context."""

    text: str
    places: tuple[int, ...]


def prompt_words(
    clip: Any, prompt: str, context_length: int, wanted: str = "", *, references: bool = False
) -> list[Word]:
    """The wanted words of a prompt, in a context of so many tokens.

    wanted: words, or several that follow one another ("red sphere"), separated by commas; empty: every word
    of the prompt. A word that occurs twice has the places of both. references: whether the context may have
    the tokens of reference images. Raises ValueError if the prompt lacks a wanted word, or if this CLIP makes
    another number of tokens of it.
    """
    streams = tokenized(clip, prompt)
    others = tokenized(clip, WORDLESS)
    templated = {key for key in streams if common_prefix(streams[key], others[key]) >= SHORTEST_TEMPLATE}
    asked = [" ".join(phrase.split()) for phrase in COMMA.split(wanted) if phrase.strip()]
    found: dict[str, list[int]] = {phrase: [] for phrase in asked}
    listed: dict[str, None] = {}
    for key, start in beginnings(streams, templated, context_length, references).items():
        words = own_words(clip, key, prompt)
        listed |= dict.fromkeys(word.text for word in words)
        for phrase in asked:
            places = find([word.text for word in own_words(clip, key, phrase)], words)
            found[phrase] += [start + place for place in places]
        for word in words if not asked else ():
            found.setdefault(word.text, []).extend(start + place for place in word.places)
    if not listed and bare(prompt):
        raise ValueError(
            "prompt: the text encoder has no tokens for its letters, so it cannot be said where its words "
            "are. The T5 of SD3, Flux and others knows only Latin letters."
        )
    if not listed:
        raise ValueError("prompt: there is no word in it. Write the prompt that the image was sampled with.")
    for phrase, places in found.items():
        if not places:
            raise ValueError(f"words: the prompt has no '{phrase}'. Its words are: {', '.join(listed)}.")
    return [Word(phrase, tuple(places)) for phrase, places in found.items()]


def tokenized(clip: Any, prompt: str) -> dict[str, list[Token]]:
    """The tokens of a prompt by tokenizer, of all its sections one after the other.

    Those of LongCat-Image and Lens tell no segments. The text encoder of LongCat-Image leaves the end of its
    template out, which SUFFIX is.
    """
    sections = clip.tokenize(prompt, return_word_ids=True)
    streams = {
        key: [(*token[:2], token[2] if len(token) > 2 else 1) for section in found for token in section]
        for key, found in sections.items()
    }
    if suffix := getattr(clip.tokenizer, "SUFFIX", ""):
        for key, stream in streams.items():
            ending = vocabulary(clip, key).tokenizer(suffix, add_special_tokens=False)["input_ids"]
            streams[key] = stream[: -len(ending)]
    return streams


def beyond_template(stream: Sequence[Token], other: Sequence[Token]) -> range:
    """The places of a prompt's own tokens: between those that another prompt has, too."""
    start = common_prefix(stream, other)
    ends = [
        next((i for i in range(len(t), 0, -1) if t[i - 1][2]), 0) for t in (stream, other)
    ]  # without padding
    behind = [t[start:end][::-1] for t, end in zip((stream, other), ends, strict=True)]
    return range(start, ends[0] - common_prefix(*behind))


def common_prefix(one: Sequence[Token], other: Sequence[Token]) -> int:
    """How many tokens two streams have in common at their start; an embedding equals no other."""
    pairs = zip((token[0] for token in one), (token[0] for token in other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: isinstance(pair[0], int) and pair[0] == pair[1], pairs))


def beginnings(
    streams: dict[str, list[Token]], templated: Collection[str], context_length: int, references: bool
) -> dict[str, int]:
    """The tokenizers that fill the context, and the place in it where the tokens of each begin.

    templated: the tokenizers that put the prompt in a template. SDXL's two are stacked along the channels, so
    the places of either will do. SD3's T5 follows its CLIPs. Qwen-Image and others leave the beginning of the
    template out. FLUX.2 fills a shorter context up in front, Anima behind. Where the text encoder sees the
    reference images, too (Qwen-Image-Edit), they stand in front of the prompt.
    """
    lengths = {key: len(stream) for key, stream in streams.items()}
    for key, stream in streams.items():
        if lengths[key] == context_length:
            return {key: 0}
        if key in templated and (references or lengths[key] > context_length):
            return {key: context_length - lengths[key]}
        if fills_in_front(stream) and lengths[key] < context_length == FILLED_LENGTH:
            return {key: context_length - lengths[key]}
    if ANIMA_ENCODER in streams and lengths["t5xxl"] < context_length == FILLED_LENGTH:
        return {"t5xxl": 0}
    if lengths.get("g", 0) + lengths.get("t5xxl", 0) == context_length:
        return {"g": 0, "t5xxl": lengths["g"]}
    counts = " or ".join(str(length) for length in sorted(set(lengths.values())))
    raise ValueError(
        f"prompt: the sampler's prompt had {context_length} tokens, and the CLIP makes {counts} of this one. "
        "Connect the CLIP and write the prompt that the image was sampled with. The words of prompts that "
        "ConditioningConcat has joined cannot be told apart."
    )


def fills_in_front(stream: Sequence[Token]) -> bool:
    """Whether a stream is one text in a template behind a start token, as Mistral's: with no end."""
    segments = [segment for _, _, segment in stream]
    return segments[:1] == [0] and set(segments[1:]) == {1}


def vocabulary(clip: Any, key: str) -> Any:
    """The tokenizer of a stream: among several, the host names it by the key or as clip_l, clip_g."""
    return getattr(clip.tokenizer, key, None) or getattr(clip.tokenizer, f"clip_{key}", clip.tokenizer)


def words_in(tokenizer: Any, stream: Sequence[Token]) -> list[Word]:
    """The words of a stream of tokens, in order, in lower case, without punctuation."""
    groups: list[list[int]] = []
    segment_before, ended = 0, False
    for place, (token, weight, segment) in enumerate(stream):
        if segment == 0:
            continue
        piece = tokenizer.untokenize([(token, weight)])[0][1] if isinstance(token, int) else EMBEDDING
        text = spelled(tokenizer, [stream[place]])
        if not bare(text) or SPECIAL_TOKEN.fullmatch(piece):
            ended = True
            continue
        begins = piece.startswith(WORD_BEGINS) or separates(text[0])
        if begins or ended or segment != segment_before:
            groups.append([])
        groups[-1].append(place)
        segment_before = segment
        last = spelled(tokenizer, [stream[place] for place in groups[-1]])[-1]  # of several bytes, maybe
        ended = piece.endswith(WORD_ENDS) or separates(last) or bool(UNSPACED.match(last))
    texts = [bare(spelled(tokenizer, [stream[place] for place in group])) for group in groups]
    return [Word(text, tuple(group)) for text, group in zip(texts, groups, strict=True) if text]


def spelled(tokenizer: Any, tokens: Sequence[Token]) -> str:
    """The text of tokens. Vocabularies hold bytes, and only the tokenizers can decode them."""
    if not isinstance(tokens[0][0], int):
        return EMBEDDING
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:  # the demo model's
        return "".join(piece for _, piece in tokenizer.untokenize([token[:2] for token in tokens]))
    return inner.decode([token[0] for token in tokens]).casefold()


def bare(text: str) -> str:
    """Text without the spaces and punctuation around it, which tokens may hold, too: "(red"."""
    inside = [place for place, character in enumerate(text) if not separates(character)]
    return text[inside[0] : inside[-1] + 1] if inside else ""


def separates(character: str) -> bool:
    """Whether a character is a space or punctuation, of any script."""
    return (
        character.isspace()
        or character in string.punctuation
        or unicodedata.category(character).startswith("P")
    )


def normal(text: str) -> str:
    """Text as it is compared: CLIP's tokenizer composes accents, T5's also writes ligatures as letters."""
    return unicodedata.normalize("NFKC", text).casefold()


def own_words(clip: Any, key: str, prompt: str) -> list[Word]:
    """The words of a prompt in one of its streams, without those of a chat model's template."""
    stream = tokenized(clip, prompt)[key]
    own = beyond_template(stream, tokenized(clip, WORDLESS)[key])
    embeddings = {
        name: vectors(tokenized(clip, f"{EMBEDDING}:{name}")[key])
        for name in dict.fromkeys(EMBEDDED.findall(prompt))
    }
    return [
        word._replace(text=embedding_name([stream[place] for place in word.places], embeddings) or word.text)
        for word in words_in(vocabulary(clip, key), stream)
        if (word.text == EMBEDDING or normal(word.text) in normal(prompt)) and word.places[0] in own
    ]


def vectors(tokens: Sequence[Token]) -> list[torch.Tensor]:
    """The vectors among tokens, which are those of embeddings."""
    return [token for token, _, _ in tokens if isinstance(token, torch.Tensor)]


def embedding_name(tokens: Sequence[Token], embeddings: dict[str, list[torch.Tensor]]) -> str | None:
    """What a prompt calls the embedding with these tokens: "embedding:style"; None if it is none of them."""
    found = vectors(tokens)
    for name, known in embeddings.items():
        if found and len(found) == len(known) and all(map(torch.equal, found, known)):
            return f"{EMBEDDING}:{name}"
    return None


def find(phrase: list[str], words: Sequence[Word]) -> list[int]:
    """The places of the tokens of a phrase, wherever its words follow one another; [] if nowhere.

    Characters of languages without spaces count as words, since tokens may cut the prompt in other places
    than the phrase. "embedding" is every embedding.
    """

    def matches(asked: str, part: str) -> bool:
        is_any = asked == EMBEDDING and part.startswith(f"{EMBEDDING}:")
        return is_any or asked.casefold() == part.casefold()  # some systems find files by any capitals

    asked = [part for text in phrase for part in parts_of(text)]
    parts = [(part, word) for word in words for part in parts_of(word.text)]
    found = [
        word.places
        for start in range(len(parts))
        if 0 < len(asked) <= len(parts) - start
        and all(matches(one, part) for one, (part, _) in zip(asked, parts[start:], strict=False))
        for _, word in parts[start : start + len(asked)]
    ]
    return [place for places in dict.fromkeys(found) for place in places]


def parts_of(word: str) -> list[str]:
    """A word, or the characters of one of a language without spaces."""
    return list(word) if all(map(UNSPACED.match, word)) else [word]
