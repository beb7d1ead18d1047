"""Does the model look where the detail is? The frequency analysis of the SAG paper (its first version).

    psi       threshold of the attention received A, 1.0 and 1.3 in the paper
    M         mask, A > psi
    F         2-D Fourier transform of a patch of the image's luminance, of 8, 16 or 32 pixels square
    ring k    the frequencies of F whose radius is nearest to k / size cycles per pixel

The analysis compares the mean log10 |F| on each ring over the patches inside M with that over all patches.
The paper finds the first larger at every frequency, more so for psi 1.3. It also finds that M overlaps with
objects more than random masks of the same area do. Choices that the paper leaves open:

- patches tile the image from its upper left corner, and a patch is inside if all its pixels are;
- luminance is that of display values in [0, 1] (Rec. 709 weights), without a window;
- F is orthonormal, so that white noise has its standard deviation on every ring, whatever the size of the
  patch, and |F|^2 is taken as |F|^2 + NOISE^2, the noise of a picture of 8 bits, in double precision, which
  holds the square of any single one;
- ring 0, the mean brightness, is reported, but the claims are about the other rings;
- random masks are M with its tokens shuffled, so they have its area and its grain.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .self_attention import resize_nearest, shuffle_tokens

PATCH_SIZES = (8, 16, 32)
LUMINANCE = (0.2126, 0.7152, 0.0722)
NOISE = 1 / (255 * math.sqrt(12))  # standard deviation of rounding to 8 bits


class Curve(NamedTuple):
    """Mean log10 |F| on each ring over some patches; nan on every ring where there are no patches."""

    patches: int
    log_magnitude: list[float]


class Spectrum(NamedTuple):
    """The spectra of patches of one size: all of them, and those inside the mask of each psi."""

    size: int
    everywhere: Curve
    inside: dict[float, Curve]

    @property
    def frequencies(self) -> list[float]:
        """Radius of each ring in cycles per pixel, from 0 to 0.5."""
        return [k / self.size for k in range(self.size // 2 + 1)]

    def excess(self, psi: float) -> list[float]:
        """Mean log10 |F| of the patches inside minus that of all patches, on each ring."""
        pairs = zip(self.inside[psi].log_magnitude, self.everywhere.log_magnitude, strict=True)
        return [inside - everywhere for inside, everywhere in pairs]

    def more_at_every_frequency(self, psi: float) -> bool:
        """The paper's claim, for these patches."""
        return all(excess > 0 for excess in self.excess(psi)[1:])


class Overlap(NamedTuple):
    """Intersection over union of a mask with an object mask, and of random masks of its area (mean, std)."""

    iou: float
    random: float
    random_std: float


def spectra(
    images: Tensor, attention: Tensor, thresholds: Sequence[float], sizes: Sequence[int] = PATCH_SIZES
) -> list[Spectrum]:
    """The analysis of images (N, H, W, 3) with their attention (N, h, w), 1 = average, on the token grid.

    Patches of all images are taken together. Sizes larger than the image are left out.
    """
    found = []
    for size in sizes:
        if size <= min(images.shape[1:3]):
            logs = log_magnitudes(patches(luminance(images).double(), size))
            inside = {
                psi: curve(logs[within(attention > psi, images.shape[1:3], size)]) for psi in thresholds
            }
            found.append(Spectrum(size, curve(logs.flatten(0, 2)), inside))
    return found


def luminance(images: Tensor) -> Tensor:
    """Images (N, H, W, 3) in grey: (N, H, W)."""
    return images @ images.new_tensor(LUMINANCE)


def within(mask: Tensor, image_size: Sequence[int], size: int) -> Tensor:
    """Which patches a mask of tokens (N, h, w), bool, covers completely: (N, rows, columns), bool."""
    return patches(resize_nearest(mask.float(), image_size), size).flatten(3).amin(dim=3).bool()


def patches(images: Tensor, size: int) -> Tensor:
    """Images (N, H, W) as patches side by side, (N, rows, columns, size, size); the rest is cut off."""
    return images.unfold(1, size, size).unfold(2, size, size)


def log_magnitudes(patch: Tensor) -> Tensor:
    """Mean log10 |F| of patches (..., p, p) on the rings 0 ... p / 2: (..., p / 2 + 1).

    The corners of F beyond half a cycle per pixel are on no ring.
    """
    size = patch.shape[-1]
    power = torch.fft.fft2(patch, norm="ortho").abs().square()
    frequency = torch.fft.fftfreq(size, device=patch.device) * size
    ring = torch.hypot(frequency[:, None], frequency[None, :]).round()
    on_ring = (ring[None] == torch.arange(size // 2 + 1, device=patch.device)[:, None, None]).to(power)
    log_magnitude = 0.5 * (power + NOISE**2).log10()
    return torch.einsum("...uv,kuv->...k", log_magnitude, on_ring) / on_ring.sum(dim=(1, 2))


def curve(logs: Tensor) -> Curve:
    """The mean over patches (P, rings)."""
    return Curve(len(logs), logs.mean(dim=0).tolist())


def object_masks(masks: Tensor, image_size: Sequence[int], count: int) -> Tensor:
    """Masks of objects in [0, 1], (count or 1, h, w), as zeros and ones at image size, (count, H, W)."""
    return (resize_nearest(masks.float(), image_size) > 0.5).float().expand(count, -1, -1)


def overlap(attention: Tensor, psi: float, objects: Tensor, draws: int, seed: int) -> Overlap:
    """How well the mask of attention (N, h, w) marks the objects (N, H, W), masks of zeros and ones.

    Intersection and union are counted in pixels, over all pictures together; 0 for two empty masks.
    """
    mask = (attention > psi).float()
    tokens = torch.arange(mask[0].numel(), dtype=torch.float32).view(1, *mask.shape[1:])
    token_of = resize_nearest(tokens, objects.shape[1:]).flatten().long()
    pixels = token_of.bincount(minlength=mask[0].numel())
    of_objects = torch.zeros(len(mask), len(pixels)).index_add_(1, token_of, objects.flatten(1).float())

    def iou(tokens: Tensor) -> float:
        both = (tokens.flatten(1) * of_objects).sum()
        either = (tokens.flatten(1) * pixels).sum() + of_objects.sum() - both
        return float(both / either.clamp_min(1))

    generator = torch.Generator().manual_seed(seed)

    def shuffled() -> Tensor:
        return torch.cat([shuffle_tokens(of_picture, generator) for of_picture in mask.split(1)])

    random = torch.tensor([iou(shuffled()) for _ in range(draws)])
    return Overlap(iou(mask), float(random.mean()), float(random.std(correction=0)))


def as_numbers(found: Sequence[Spectrum], overlaps: Mapping[float, Overlap]) -> dict[str, Any]:
    """The whole analysis as JSON can hold it; null where there are no patches."""

    def numbers(of: Curve) -> dict[str, Any]:
        logs = [None if math.isnan(value) else round(value, 5) for value in of.log_magnitude]
        return {"patches": of.patches, "log10_magnitude": logs}

    return {
        "patches": [
            {
                "size": s.size,
                "cycles_per_pixel": s.frequencies,
                "all": numbers(s.everywhere),
                "inside": [
                    {
                        "threshold": psi,
                        **numbers(inside),
                        "more_at_every_frequency": s.more_at_every_frequency(psi),
                    }
                    for psi, inside in s.inside.items()
                ],
            }
            for s in found
        ],
        "objects": [
            {"threshold": psi, "iou": o.iou, "random_iou": o.random, "random_iou_std": o.random_std}
            for psi, o in overlaps.items()
        ],
    }


def in_words(found: Sequence[Spectrum], overlaps: Mapping[float, Overlap]) -> list[str]:
    """Whether the claims of the paper hold: one sentence per threshold."""
    lines = []
    for psi in found[0].inside:
        held = [f"{s.size} px" for s in found if s.more_at_every_frequency(psi)]
        lines.append(
            f"Attention > {psi:g}: more at every frequency in patches of {', '.join(held) or 'no size'}."
        )
        if psi in overlaps:
            o = overlaps[psi]
            lines[-1] += (
                f" IoU with objects {o.iou:.2f}, of random masks {o.random:.2f} ± {o.random_std:.2f}."
            )
    return lines
