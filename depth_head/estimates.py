"""What stands in for a model's clean estimates while a latent head is trained: no model is needed.

Where there is much noise, a model's estimate of the latent is blurred, and a part of the noise is left in it.

    estimate = G * x0 + n std eta      G: a Gaussian of deviation g latent pixels; eta: standard normal

g and n are drawn evenly between 0 and a limit that rises with the time. Estimates by the best linear filter
(Wiener) were tried, too: such a head follows a target further (docs/derivations.md).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The limits of g and n at time 1000.
MOST_BLUR, MOST_NOISE = 1.5, 0.3
# Latent pixels by which x0 is continued at its edges, for the Gaussian.
BORDER = 5


def stand_in(x0: Tensor, eta: Tensor, time: Tensor, shares: Tensor, deviation: float) -> Tensor:
    """Estimates of x0 (B, C, h, w) at time (B,) in [0, 1000).

    shares (B, 2) in [0, 1]: of the limits of g and n. deviation: of all latents, std.
    """
    g, n = (shares * (time / 1000)[:, None]).unbind(1)
    noise = (MOST_NOISE * deviation * n).view(-1, 1, 1, 1) * eta
    return blurred(x0, MOST_BLUR * g) + noise


def blurred(x: Tensor, g: Tensor) -> Tensor:
    """Latents x (B, C, h, w), each blurred by a Gaussian of deviation g (B,) in pixels; edges are continued.

    A product in the frequency domain, F G = exp(-2 pi^2 g^2 f^2), where every image can have its own.
    """
    wide = F.pad(x, [BORDER] * 4, mode="replicate")
    height, width = wide.shape[-2:]
    vertical = torch.fft.fftfreq(height, device=x.device)[:, None]
    horizontal = torch.fft.rfftfreq(width, device=x.device)
    response = torch.exp(-2 * (math.pi * g.view(-1, 1, 1, 1)) ** 2 * (vertical**2 + horizontal**2))
    wide = torch.fft.irfft2(torch.fft.rfft2(wide) * response, s=(height, width))
    return wide[..., BORDER : height - BORDER, BORDER : width - BORDER]
