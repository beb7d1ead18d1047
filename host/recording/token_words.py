"""Joins the tokens of a prompt into words.

The host's tokenizers say which tokens a prompt has, and from which weighted segment, "(red sphere:1.2)", but
not from which word. Vocabularies mark where words begin or end:

    CLIP              red</w>    a word ends
    T5, Gemma         ▁red       a word begins
    Qwen, Llama 3,    Ġred       a word begins
    Mistral
    the demo model    red        a token is a word, and a segment of its own
"""

import re
import string
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from .tokenized_prompt import Token

WORD_BEGINS = ("▁", "Ġ")
WORD_ENDS = "</w>"
# Chinese and Japanese have no spaces: each of their tokens is a word, and a phrase may begin within one.
UNSPACED = re.compile("[\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\U00020000-\U000323af]")
SPECIAL_TOKEN = re.compile(r"<.+>|\[/?[A-Z_]+\]")
EMBEDDING = "embedding"


class Word(NamedTuple):
    """A word, or several that follow one another, and the places of its tokens in the context."""

    text: str
    places: tuple[int, ...]


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
