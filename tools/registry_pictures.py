"""Draws the registry's icon and banner: a sphere in colour and as depth.

python -m tools.registry_pictures
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from .setup_host import ROOT

FAR, NEAR = (38, 18, 60), (250, 205, 120)
RED, NIGHT = (214, 62, 52), (18, 20, 30)
LIGHT = np.array((-0.48, -0.62, 0.62))
SMOOTH = 3  # samples per pixel and axis


def sphere(width: int, height: int, radius: float) -> Image.Image:
    """A lit red sphere in front of a wall left of the middle; right of it, how near each point is."""
    y, x = np.mgrid[: height * SMOOTH, : width * SMOOTH] / SMOOTH
    across, down = (x - width / 2) / radius, (y - height / 2) / radius
    outward = 1 - across**2 - down**2
    inside = outward > 0
    nearness = np.sqrt(outward.clip(0))

    lit = (across * LIGHT[0] + down * LIGHT[1] + nearness * LIGHT[2]).clip(0)
    colour = np.where(inside[..., None], np.multiply.outer(0.25 + 0.75 * lit, RED), NIGHT)
    depth = np.where(inside, 0.25 + 0.75 * nearness, 0.1 + 0.1 * y / height)[..., None]
    depth = (1 - depth) * np.array(FAR) + depth * np.array(NEAR)

    pixels = np.where((x < width / 2)[..., None], colour, depth).clip(0, 255)
    pixels = pixels.reshape(height, SMOOTH, width, SMOOTH, 3).mean(axis=(1, 3))
    return Image.fromarray(pixels.round().astype(np.uint8))


def main() -> None:
    """Writes docs/icon.png and docs/banner.png."""
    for name, width, height, radius in (("icon", 400, 400, 150), ("banner", 1260, 540, 200)):
        picture = sphere(width, height, radius).quantize(128)
        picture.save(ROOT / "docs" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
