"""Finds the tokens of each word of a prompt in the context that cross-attention sees.

tokenized_prompt.py   the tokens of a prompt
token_words.py        which of them are one word
context_places.py     where they stand in the context
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch

from .context_places import beginnings
from .token_words import EMBEDDING, UNSPACED, Word, bare, words_in
from .tokenized_prompt import WORDLESS, Token, beyond_template, common_prefix, tokenized, vocabulary

COMMA = re.compile("[,\uff0c\u3001]")
EMBEDDED = re.compile(rf"{EMBEDDING}:([^\s,:()<\[]+)")  # the name of one in a prompt
SHORTEST_TEMPLATE = 3  # tokens before the prompt: <|im_start|>user and a new line


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
