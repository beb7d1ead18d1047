"""The tokens that the host's tokenizers make of a prompt, with and without a chat model's template."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

WORDLESS = "."  # a prompt; for an empty one, Boogu has another template

# Number in the vocabulary or vector of an embedding, weight, segment: 0 for start, end and padding.
Token = tuple[Any, float, int]


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


def vocabulary(clip: Any, key: str) -> Any:
    """The tokenizer of a stream: among several, the host names it by the key or as clip_l, clip_g."""
    return getattr(clip.tokenizer, key, None) or getattr(clip.tokenizer, f"clip_{key}", clip.tokenizer)


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
