"""depth_head/architectures: both networks against float64 forwards written from the papers."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from inner_guidance.depth_head.architectures import ARCHITECTURES, LATENT, architecture_of, build
from inner_guidance.depth_head.architectures.pixel_mlp import TIME_CHANNELS, PixelMLP, embed_time
from inner_guidance.depth_head.architectures.readout import Readout
from inner_guidance.depth_head.architectures.running_norm import EPSILON
from inner_guidance.tests.support.readout_reference import readout_reference_of

SIZE = (6, 10)
TAPS = {"deep": 12, "middle": 8, "shallow": 4}
GRIDS = {"deep": (2, 3), "middle": (3, 5), "shallow": (6, 10)}
EMBEDDING = 16


def pixel_mlp():
    return PixelMLP(TAPS, strong=("deep", "middle", "shallow"), weak=("middle",), widths=(7, 5))


def readout(taps=None):
    return Readout(taps or TAPS, weak=("middle",), embedding=("time", EMBEDDING), projection=128)


NETWORKS = {"pixel_mlp": pixel_mlp, "readout": readout}


def features(batch=3, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    made = {
        name: scale * torch.randn(batch, channels, *GRIDS[name], generator=generator)
        for name, channels in TAPS.items()
    }
    return made | {"time": torch.randn(batch, EMBEDDING, generator=generator)}


TIME = torch.tensor([3.0, 480.25, 799.0])


@pytest.fixture(params=list(NETWORKS))
def network(request):
    """With random parameters and statistics throughout, ready for estimation."""
    torch.manual_seed(0)
    network = NETWORKS[request.param]().eval()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor) * 0.3)
    return network


def pixel_mlp_reference(weights, features, time, branch, read):
    """[Linear -> SiLU -> BatchNorm] + [embedding -> Linear], twice, Linear, sigmoid; pixel by pixel."""
    weights = {name: value.double() for name, value in weights.items()}
    grids = []
    for i, name in enumerate(TAPS):
        mean, var = (weights[f"standardise.{i}.running_{kind}"].view(1, -1, 1, 1) for kind in ("mean", "var"))
        standard = (features[name].double() - mean) / (var + EPSILON).sqrt()
        if name in read:
            grids.append(F.interpolate(standard, SIZE, mode="bilinear"))
    h = torch.cat(grids, dim=1).permute(0, 2, 3, 1)
    frequency = torch.tensor(
        [10_000 ** -(i / (TIME_CHANNELS / 2)) for i in range(TIME_CHANNELS // 2)], dtype=torch.float64
    )
    angle = time.double()[:, None] * frequency
    embedding = torch.cat([angle.cos(), angle.sin()], dim=1)
    for i in range(2):
        of = {
            name.removeprefix(f"{branch}.layers.{i}."): value
            for name, value in weights.items()
            if name.startswith(f"{branch}.layers.{i}.")
        }
        h = h @ of["linear.weight"].T + of["linear.bias"]
        h = h / (1 + (-h).exp())
        h = (h - of["norm.running_mean"]) / (of["norm.running_var"] + EPSILON).sqrt()
        h = h * of["norm.weight"] + of["norm.bias"]
        h = h + (embedding @ of["time.weight"].T + of["time.bias"])[:, None, None]
    depth = h @ weights[f"{branch}.depth.weight"].T + weights[f"{branch}.depth.bias"]
    return (1 / (1 + (-depth).exp())).permute(0, 3, 1, 2)


def readout_reference(weights, features, read):
    """The branch that reads only these."""
    chosen = [i for i, name in enumerate(TAPS) if name in read]
    return readout_reference_of(weights, [features[name] for name in TAPS], features["time"], SIZE, chosen)


@pytest.mark.parametrize(("branch", "read"), [("strong", tuple(TAPS)), ("weak", ("middle",))])
def test_forward_is_the_formula(network, branch, read):
    given = features()
    with torch.no_grad():
        depth = network(given, TIME, SIZE, branch)
    if isinstance(network, PixelMLP):
        expected = pixel_mlp_reference(network.state_dict(), given, TIME, branch, read)
    else:
        expected = readout_reference(network.state_dict(), given, read)

    assert depth.shape == (3, 1, *SIZE)
    torch.testing.assert_close(depth.double(), expected, rtol=1e-4, atol=1e-5)
    assert depth.std() > 0.005


def test_depth_stays_between_0_and_1(network):
    with torch.no_grad():
        depth = network(features(scale=100.0), TIME, SIZE)
    assert depth.min() >= 0
    assert depth.max() <= 1


def test_a_branch_needs_its_own_taps_only(network):
    given = features()
    assert set(network.branch_taps["weak"]) < set(network.branch_taps["strong"]) == set(network.taps)
    for branch, names in network.branch_taps.items():
        with torch.no_grad():
            alone = network({name: given[name] for name in names}, TIME, SIZE, branch)
            assert torch.equal(alone, network(given, TIME, SIZE, branch))


def test_branches_together_are_the_branches_alone(network):
    given = features()
    with torch.no_grad():
        weak, strong = network.branches(given, TIME, SIZE, ("weak", "strong"))
        assert torch.equal(weak, network(given, TIME, SIZE, "weak"))
        assert torch.equal(strong, network(given, TIME, SIZE, "strong"))
    assert not torch.allclose(weak, strong, atol=1e-3)


def test_rows_of_a_batch_do_not_touch(network):
    given = features()
    with torch.no_grad():
        whole = network(given, TIME, SIZE)
        for i in range(3):
            row = network({name: f[i : i + 1] for name, f in given.items()}, TIME[i : i + 1], SIZE)
            torch.testing.assert_close(row, whole[i : i + 1], rtol=1e-4, atol=1e-5)


def test_half_precision_features_are_read_in_float32(network):
    given = {name: f.half() for name, f in features().items()}
    with torch.no_grad():
        depth = network(given, TIME, SIZE)
        assert depth.dtype == torch.float32
        assert torch.equal(depth, network({name: f.float() for name, f in given.items()}, TIME, SIZE))


def test_a_network_is_made_again_from_its_config(network):
    again = build(architecture_of(network), json.loads(json.dumps(network.config)))
    again.load_state_dict(network.state_dict())
    again.eval()
    assert type(again) is type(network)
    assert (again.taps, again.branch_taps) == (network.taps, network.branch_taps)
    with torch.no_grad():
        assert torch.equal(again(features(), TIME, SIZE), network(features(), TIME, SIZE))


def test_every_architecture_is_tested():
    """The latent one in test_latent_depth.py: it reads one feature, and has one branch."""
    assert {*NETWORKS, LATENT} == set(ARCHITECTURES)


def test_time_is_continuous():
    torch.manual_seed(0)
    network = pixel_mlp().eval()
    given = {name: f[:1].expand(3, *f.shape[1:]) for name, f in features().items()}
    with torch.no_grad():
        at_400, between, at_401 = network(given, torch.tensor([400.0, 400.5, 401.0]), SIZE)
    assert not torch.allclose(at_400, at_401, atol=1e-4)
    assert (at_400 - between).abs().mean() < 0.7 * (at_400 - at_401).abs().mean()


def test_branches_of_the_pixel_mlp_share_no_gradient():
    torch.manual_seed(0)
    network = pixel_mlp().train()
    network(features(), TIME, SIZE, "weak").sum().backward()
    assert all(parameter.grad is None for parameter in network.strong.parameters())
    assert all(parameter.grad is not None for parameter in network.weak.parameters())


def test_weak_readout_sees_no_other_bottleneck():
    torch.manual_seed(0)
    network = readout().train()
    network(features(), TIME, SIZE, "weak").sum().backward()
    touched = [
        any(parameter.grad is not None for parameter in bottleneck.parameters())
        for bottleneck in network.bottleneck_layers
    ]
    assert touched == [False, True, False]


def test_readout_has_the_parameters_of_the_public_files():
    """The names of readout_sdv15_spatial_depth.pt, here with a feature that is as wide as the projection."""
    network = readout({"deep": 128, "middle": 64})
    norm = ["norm.bias", "norm.weight", "weight"]
    expected = {"mixing_weights"}
    expected |= {f"output_head.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")}
    for i in (0, 1):
        convs = ["conv1", "conv2", "conv3"] + ["shortcut"] * (i == 1)
        expected |= {f"bottleneck_layers.{i}.{conv}.{kind}" for conv in convs for kind in norm}
        expected |= {f"bottleneck_layers.{i}.emb_layers.{kind}" for kind in ("weight", "bias")}
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    assert set(shapes) == expected
    assert shapes["bottleneck_layers.1.conv1.weight"] == (32, 64, 1, 1)
    assert shapes["bottleneck_layers.1.conv2.weight"] == (32, 32, 3, 3)
    assert shapes["bottleneck_layers.1.conv3.weight"] == (128, 32, 1, 1)
    assert shapes["bottleneck_layers.1.shortcut.weight"] == (128, 64, 1, 1)
    assert shapes["bottleneck_layers.1.emb_layers.weight"] == (32, EMBEDDING)
    assert shapes["output_head.4.weight"] == (3, 32, 1, 1)


def test_embedding_has_the_frequencies_of_the_unet():
    embedded = embed_time(torch.tensor([0.0, 250.0]))
    half = TIME_CHANNELS // 2
    assert embedded[0].tolist() == [1.0] * half + [0.0] * half
    assert embedded[1, 0].item() == pytest.approx(math.cos(250.0), abs=1e-4)
    last = 250 / 10_000 ** ((half - 1) / half)
    assert embedded[1, -1].item() == pytest.approx(math.sin(last), abs=1e-5)
