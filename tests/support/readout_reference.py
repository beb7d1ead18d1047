"""The public Readout heads, from their layout: files as they are, and what they compute, in float64."""

import torch
import torch.nn.functional as F

SD15_CHANNELS = (1280,) * 6 + (640,) * 3 + (320,) * 3
SDXL_CHANNELS = (1280,) * 3 + (640,) * 3 + (320,) * 3


def public_weights(channels, seed=0):
    """The state dict of a public head, from readout_heads' layout alone."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        fan_in = max(1, torch.Size(shape[1:]).numel())
        return torch.randn(*shape, generator=generator) / fan_in**0.5

    weights = {"mixing_weights": draw(len(channels))}
    for i, c in enumerate(channels):
        of = f"bottleneck_layers.{i}"
        convs = {"conv1": (96, c, 1), "conv2": (96, 96, 3), "conv3": (384, 96, 1), "shortcut": (384, c, 1)}
        for name, (after, before, kernel) in convs.items():
            weights[f"{of}.{name}.weight"] = draw(after, before, kernel, kernel)
            weights[f"{of}.{name}.norm.weight"] = 1 + 0.1 * draw(after)
            weights[f"{of}.{name}.norm.bias"] = 0.1 * draw(after)
        weights |= {f"{of}.emb_layers.weight": draw(96, 1280), f"{of}.emb_layers.bias": draw(96)}
    for i, (after, before, kernel) in {0: (128, 384, 3), 2: (32, 128, 3), 4: (3, 32, 1)}.items():
        weights[f"output_head.{i}.weight"] = draw(after, before, kernel, kernel)
        weights[f"output_head.{i}.bias"] = draw(after)
    return weights


def public_checkpoint(channels):
    return {
        "step": 5000,
        "config": {
            "projection_dim": 384,
            "dims": list(channels),
            "save_timestep": [0],
            "num_timesteps": 1,
            "aggregation_kwargs": {
                "use_output_head": True,
                "output_head_channels": 3,
                "bottleneck_sequential": False,
            },
        },
        "aggregation_network": public_weights(channels),
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]},
    }


def readout_reference_of(weights, features, embedding, size, chosen=None):
    """From the layout of the public files, operation by operation."""
    weights = {name: value.double() for name, value in weights.items()}

    def conv(x, name, padding=0):
        x = F.conv2d(x, weights[f"{name}.weight"], padding=padding)
        groups = x.unflatten(1, (32, -1)).flatten(2)
        groups = groups - groups.mean(2, keepdim=True)
        groups = groups / (groups.square().mean(2, keepdim=True) + 1e-5).sqrt()
        x = groups.view_as(x)
        return x * weights[f"{name}.norm.weight"].view(-1, 1, 1) + weights[f"{name}.norm.bias"].view(-1, 1, 1)

    chosen = range(len(features)) if chosen is None else chosen
    shares = weights["mixing_weights"][list(chosen)].exp()
    shares = shares / shares.sum()
    total = 0
    for share, i in zip(shares, chosen, strict=True):
        x = F.interpolate(features[i].double(), size, mode="bilinear")
        of = f"bottleneck_layers.{i}"
        e = embedding.double() @ weights[f"{of}.emb_layers.weight"].T
        e = (e + weights[f"{of}.emb_layers.bias"]).clamp(min=0)
        h = conv(x, f"{of}.conv1").clamp(min=0) + e[:, :, None, None]
        h = conv(h, f"{of}.conv2", padding=1).clamp(min=0)
        h = conv(h, f"{of}.conv3")
        shortcut = conv(x, f"{of}.shortcut") if f"{of}.shortcut.weight" in weights else x
        total = total + share * (h + shortcut).clamp(min=0)
    for i, padding in ((0, 1), (2, 1), (4, 0)):
        total = F.conv2d(
            total, weights[f"output_head.{i}.weight"], weights[f"output_head.{i}.bias"], padding=padding
        )
        total = total.tanh() if i == 4 else total / (1 + (-total).exp())
    return (total.mean(1, keepdim=True) + 1) / 2
