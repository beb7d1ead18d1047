"""Features that hold the depth of twenty images, more noisily the later the time, and a network for them."""

import torch

from inner_guidance.depth_head.architectures.pixel_mlp import PixelMLP
from inner_guidance.depth_head.metrics import DepthRange
from inner_guidance.depth_head.training import TrainingSettings

COUNT, SIZE = 20, (6, 6)
RANGE = DepthRange(1.5, 12.0)


def depth_labels():
    """Depth of the images, (COUNT, 1, *SIZE)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(COUNT, 1, 3, 3, generator=generator)
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")


def world(labels, noise=0.5):
    """Features as a UNet's: clear (o1) and blurred (o0), with noise that grows with the time."""

    def features(rows, time, seeds):
        clear = []
        for row, t, seed in zip(rows.tolist(), time.tolist(), seeds.tolist(), strict=True):
            generator = torch.Generator().manual_seed(seed)
            eps = torch.randn(8, *SIZE, generator=generator)
            clear.append(labels[row] * torch.linspace(-3, 3, 8).view(8, 1, 1) + noise * t / 1000 * eps)
        clear = torch.stack(clear)
        blurred = torch.nn.functional.avg_pool2d(clear, 2)
        return {"o0": blurred, "o1": clear, "r0": blurred, "r1": clear, "time": time[:, None].expand(-1, 16)}

    return features


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PixelMLP({"o0": 8, "o1": 8}, strong=("o0", "o1"), weak=("o0",), widths=(16,))


def settings(**changed):
    defaults = {"steps": 150, "batch_size": 4, "learning_rate": 0.01, "seed": 0, "depth_range": RANGE}
    return TrainingSettings(**defaults | changed)
