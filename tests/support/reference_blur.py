"""Gaussian blur as a direct convolution, in float64."""

import math

import numpy as np
import torch


def reference_blur(image, sigma):
    """Direct convolution with reflect padding, one pixel after the other."""
    blurred = image.double().numpy()
    for axis in (-2, -1):
        n = blurred.shape[axis]
        radius = min(math.ceil(3 * sigma), n - 1)
        weight = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        weight /= weight.sum()
        padding = [(0, 0)] * blurred.ndim
        padding[axis] = (radius, radius)
        padded = np.moveaxis(np.pad(blurred, padding, mode="reflect"), axis, -1)
        out = sum(w * padded[..., t : t + n] for t, w in enumerate(weight))
        blurred = np.moveaxis(out, -1, axis)
    return torch.from_numpy(np.ascontiguousarray(blurred))


def blur_matrix(height, width, sigma):
    """The blur of maps (..., height, width) as a matrix: blurred.flatten() = d.flatten() @ matrix."""
    cells = torch.eye(height * width, dtype=torch.float64).view(-1, height, width)
    return reference_blur(cells, sigma).view(-1, height * width)
