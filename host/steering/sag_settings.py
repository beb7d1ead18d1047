"""The settings of Self-Attention Guidance."""

from dataclasses import dataclass

from ..taps.blocks import AttentionLayer

POSITIVE, NEGATIVE = 0, 1  # the host's condition lists, in its order
BRANCHES = {"auto": (NEGATIVE, POSITIVE), "negative": (NEGATIVE,), "positive": (POSITIVE,)}
SPACES = ("eps", "v")
MASKS = ("attention", "global", "high frequency", "random")


@dataclass(frozen=True)
class SelfAttentionSettings:
    """The settings of the node.

    scale s, blur_sigma in latent pixels, threshold psi. branch, of BRANCHES: the prompt for attention,
    estimate and second pass; "auto" is the negative if the host evaluates one. space of SPACES, mask of
    MASKS. The extra pass runs at every n-th step between the percentages, and its guidance serves until the
    next.
    """

    layers: tuple[AttentionLayer, ...]
    scale: float
    blur_sigma: float
    threshold: float
    branch: str
    space: str
    mask: str
    start_percent: float
    end_percent: float
    every_n_steps: int
