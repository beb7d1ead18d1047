"""The demo model's text encoder: a bag of words with one token per word. In the graph it is an ordinary CLIP.

A noun ends a phrase ("red sphere", "grey checker floor"). The context vector of a word is computed from its
own embedding and from the sum of those of its phrase, so that "red" depends on what it colours.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

import comfy.ops
import torch
from comfy.sd1_clip import ClipTokenWeightEncoder, escape_important, token_weights, unescape_important
from torch import Tensor, nn

from .scenes import COLOURS, FLOOR_PATTERNS, FLOOR_TINTS, SHAPES, WALL_TINTS

CONTEXT_LENGTH = 16
CONTEXT_DIM = 128
EMPTY = 0
NOUNS = (*SHAPES, "floor", "wall")
ADJECTIVES = tuple(dict.fromkeys((*COLOURS, *WALL_TINTS, *FLOOR_TINTS, *FLOOR_PATTERNS)))
VOCABULARY = ("", *NOUNS, *ADJECTIVES)
"""Every word that the model knows, by token. The order is part of the weights; token 0 is padding."""

PASSED_OVER = frozenset({"a", "an", "the", "and", "with", "of", "on", "in", "at", "to", "is", "room"})
"""Words that are ignored without a warning."""


class SceneTokenizer:
    """Words to tokens, with weights as in `(word:1.2)`. It has the interface of the host's tokenizers."""

    def __init__(self, embedding_directory: object = None, tokenizer_data: object = None) -> None:
        pass

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **_: object
    ) -> dict[str, list[list[tuple]]]:
        """Sections of CONTEXT_LENGTH pairs (token, weight), with the word number as a third on request.

        A phrase is never cut in two. Words outside the vocabulary are left out, with one warning.
        """
        sections: list[list[tuple]] = [[]]
        phrase: list[tuple] = []
        unknown: list[str] = []
        for number, (word, weight) in enumerate(_weighted_words(text), 1):
            if word in PASSED_OVER:
                continue
            if word not in VOCABULARY:
                unknown.append(word)
                continue
            phrase.append((VOCABULARY.index(word), weight, number))
            if word in NOUNS or len(phrase) == CONTEXT_LENGTH:
                _append_phrase(sections, phrase)
                phrase = []
        _append_phrase(sections, phrase)
        if unknown:
            logging.warning(
                "The demo model does not know %s and ignores it. It knows these words: %s.",
                ", ".join(f"'{word}'" for word in dict.fromkeys(unknown)),
                ", ".join(VOCABULARY[1:]),
            )
        width = 3 if return_word_ids else 2
        filled = [section + [(EMPTY, 1.0, 0)] * (CONTEXT_LENGTH - len(section)) for section in sections]
        return {"scene": [[token[:width] for token in section] for section in filled]}

    def untokenize(self, token_weight_pair: Iterable[tuple]) -> list[tuple[tuple, str]]:
        """The words of tokens."""
        return [(pair, VOCABULARY[pair[0]]) for pair in token_weight_pair]

    def state_dict(self) -> dict[str, Tensor]:
        """What a saved checkpoint keeps of a tokenizer: nothing."""
        return {}


def _append_phrase(sections: list[list[tuple]], phrase: list[tuple]) -> None:
    if len(sections[-1]) + len(phrase) > CONTEXT_LENGTH:
        sections.append([])
    sections[-1].extend(phrase)


def _weighted_words(text: str) -> list[tuple[str, float]]:
    return [
        (word, weight)
        for part, weight in token_weights(escape_important(text), 1.0)
        for word in re.findall(r"[\w-]+", unescape_important(part).lower())
    ]


class SceneTextEncoder(nn.Module, ClipTokenWeightEncoder):
    """Tokens (B, CONTEXT_LENGTH) to context (B, CONTEXT_LENGTH, CONTEXT_DIM).

    c_i = W_2 silu(W_1 [w_i, sum of w_j over the phrase of i]) + w_i
    """

    def __init__(
        self, dtype: torch.dtype | None = None, device: object = None, model_options: object = None
    ) -> None:
        super().__init__()
        ops = comfy.ops.manual_cast
        self.words = ops.Embedding(len(VOCABULARY), CONTEXT_DIM, dtype=dtype, device=device)
        self.mix = ops.Linear(2 * CONTEXT_DIM, 2 * CONTEXT_DIM, dtype=dtype, device=device)
        self.out = ops.Linear(2 * CONTEXT_DIM, CONTEXT_DIM, dtype=dtype, device=device)
        self.dtypes = {dtype} if dtype is not None else set()
        self.special_tokens = {"pad": EMPTY}
        self.execution_device: torch.device | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """Context of whole sections."""
        words = self.words(tokens, out_dtype=torch.float32)
        is_noun = (tokens >= 1) & (tokens <= len(NOUNS))
        phrase = is_noun.cumsum(1) - is_noun.long()
        same = (phrase[:, :, None] == phrase[:, None, :]) & (tokens != EMPTY)[:, None, :]
        phrases = same.to(words.dtype) @ words
        phrases = phrases * (tokens != EMPTY)[..., None]
        return self.out(nn.functional.silu(self.mix(torch.cat([words, phrases], -1)))) + words

    def encode(self, tokens: list[list[int]]) -> tuple[Tensor, None]:
        """Context, and None for the pooled output, which the UNet does not use."""
        device = self.execution_device or self.words.weight.device
        return self(torch.tensor(tokens, device=device)), None

    def encode_token_weights(self, token_weight_pairs: dict[str, list]) -> tuple[Tensor, None]:
        """Context of all sections, concatenated: (1, sections x CONTEXT_LENGTH, CONTEXT_DIM)."""
        return super().encode_token_weights(token_weight_pairs["scene"])

    def gen_empty_tokens(self, special_tokens: dict[str, int], length: int) -> list[int]:
        """The empty prompt: the host scales weighted words relative to its context."""
        return [special_tokens["pad"]] * length

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Takes the device to which the host moved the weights."""
        self.execution_device = options.get("execution_device", self.execution_device)

    def reset_clip_options(self) -> None:
        """Returns to the device of the weights."""
        self.execution_device = None

    def load_sd(self, state_dict: dict[str, Tensor]) -> tuple[list[str], list[str]]:
        """Loads weights; returns the names of missing and of unexpected ones."""
        return self.load_state_dict(state_dict, strict=False)
