"""The inputs of Attention Maps for cross-attention, and whether they are there."""

from typing import Any

from comfy_api.latest import io

from .schema import UNCONNECTED, chosen_of

KINDS = SELF, CROSS = ("self", "cross")

WORDS = io.String.Input(
    "words",
    default="",
    tooltip=(
        "For cross: the words to show, separated by commas. Consecutive words ('red sphere') make one map. "
        "Leave empty to show every word of the prompt."
    ),
)
PROMPT = io.String.Input(
    "prompt",
    default="",
    multiline=True,
    tooltip="For cross: the exact prompt that the image was sampled with.",
)
CLIP = io.Clip.Input(
    "clip",
    optional=True,
    tooltip="For cross: the CLIP that encoded the prompt. It tells which tokens belong to each word.",
)
MISSING = (
    "Attention Maps: to show cross-attention, connect clip and enter the prompt that the image was sampled "
    "with."
)


def valid(attention: str | None, prompt: str | None, clip: Any) -> bool | str:
    """For validate_inputs: True, or what is wrong, in a sentence."""
    without_prompt = prompt is not None and not prompt.strip()
    if attention == CROSS and (clip is UNCONNECTED or without_prompt):
        return MISSING
    return chosen_of(KINDS, "attention", attention)
