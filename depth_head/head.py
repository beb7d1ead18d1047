"""A depth head: a network with what is needed to use it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .architectures import DepthNetwork
from .calibration import Calibration
from .metrics import DepthRange

# What `training` says of a public Readout head, also after it was saved again.
PUBLIC_READOUT = "Readout Guidance (arXiv:2312.02150)"
SD1, SDXL = "Stable Diffusion 1.x", "Stable Diffusion XL"

# Assumed where labels and public heads give no distances; metrics.py says what depends on it.
ASSUMED_RANGE = DepthRange(near=1.0, far=10.0)


@dataclass(frozen=True)
class LatentSpace:
    """What latents are while a sampler works on them; models that share a VAE mostly have the same.

    name: of the format. scale: by what the latents of the VAE are scaled and shifted, in words.
    """

    name: str
    channels: int
    scale: str

    def __str__(self) -> str:
        return f"{self.name} ({self.channels} channels, {self.scale})"


@dataclass(frozen=True)
class DepthHead:
    """network: in evaluation mode, float32. model_family: of a head that reads features, in words, as
    messages give it; for a `latent` head, the latents that it reads.

    depth_range: what white and black mean in metres in the labels. training: a summary, plain values.
    name: the file's, for messages. calibration: how it reads real images; None for public heads and files of
    version 1.
    """

    network: DepthNetwork
    model_family: str | LatentSpace
    depth_range: DepthRange = ASSUMED_RANGE
    training: Mapping[str, Any] = field(default_factory=dict)
    name: str = "the depth head"
    calibration: Calibration | None = None

    @property
    def weak_is_trained(self) -> bool:
        """Whether the weak branch was trained: not by the authors of the public Readout heads."""
        return self.training.get("source") != PUBLIC_READOUT


class FeatureHead(Protocol):
    """A head of any kind that reads features: its file's name, its model's family, a network with `taps`."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def model_family(self) -> object: ...  # noqa: D102

    @property
    def network(self) -> Any: ...  # noqa: D102


def require_fit(
    head: FeatureHead, model_family: str, channels: Mapping[str, int], kind: str = "depth head"
) -> None:
    """Raises ValueError, in a sentence that names both, unless a head fits a model.

    channels: name -> channels of whatever the model has to read. kind: of the head, in words.
    """
    advice = f"load a {kind} for it, or make one with Train {kind.title()}"
    if head.model_family != model_family:
        raise ValueError(
            f"{head.name} reads the features of {head.model_family}, but this model is {model_family}: "
            f"{advice}."
        )
    for name, wanted in head.network.taps.items():
        if channels.get(name) != wanted:
            there = f"has {channels[name]} there" if name in channels else "has no such block"
            raise ValueError(
                f"{head.name} reads {wanted} channels at {name} of {head.model_family}, but this model, "
                f"{model_family}, {there}: {advice}."
            )


def require_latent_space(head: DepthHead, space: LatentSpace) -> None:
    """Raises ValueError, in a sentence that names both, unless a latent head reads a model's latents."""
    if head.model_family != space:
        raise ValueError(
            f"{head.name} reads latents of {head.model_family}, but this model has latents of {space}: load "
            "a depth head for them, or make one with Train Depth Head."
        )


def middle_blocks(count: int) -> tuple[range, int]:
    """Default blocks of the strong branch, and block of the weak one, out of `count`, deepest first.

    The middle half, and the middle one. The paper uses 2, 4 to 7 and 6 of 18, on a UNet with six levels, and
    finds that the middle of the decoder knows most about depth.
    """
    return range(count // 4, count - count // 4), count // 2


def first_half_blocks(count: int) -> tuple[tuple[int, ...], int]:
    """Of a transformer's `count` blocks: the strong branch's by default, and the weak one's.

    At a quarter, three eighths and half of the depth: ReaDiT (arXiv:2609.04649) reads block 12 of 24 in SD3
    and joint block 18 of 19 in FLUX, which has 38 more. Nothing behind half depth is differentiated.
    """
    weak = 3 * count // 8
    return tuple(sorted({count // 4, weak, count // 2})), weak
