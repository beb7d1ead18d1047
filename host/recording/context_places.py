"""Where the tokens of each tokenizer begin in the context that cross-attention sees."""

from collections.abc import Collection, Sequence

from .tokenized_prompt import Token

FILLED_LENGTH = 512  # to which FLUX.2 and Anima fill a shorter context
ANIMA_ENCODER = "qwen3_06b"  # beside it, the tokens of T5 ask for the places of the context


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
