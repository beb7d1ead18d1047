"""Train Depth Head on tiny models; on the demo model in test_demo_depth_head.py.

Interruptions are in test_train_depth_head_interrupted.py.
"""

import comfy.model_management
import comfy.utils
import pytest
import torch

from inner_guidance.depth_head.head_files import load_depth_head, save_depth_head
from inner_guidance.host.classifier.training import new_classifier
from inner_guidance.host.depth.head_training import new_network
from inner_guidance.nodes.train_classifier_head import InnerTrainClassifierHead
from inner_guidance.nodes.train_depth_head import InnerTrainDepthHead
from inner_guidance.tests.support import function_wrappers as wrappers
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.depth_head_runs import FourfoldVAE, pairs, train, weights
from inner_guidance.tests.support.node_defaults import execute

pytestmark = pytest.mark.oldest_host


@pytest.mark.parametrize(
    ("architecture", "strong", "weak"),
    [
        ("pixel_mlp", [f"o{i}" for i in range(3, 9)], ["o6"]),
        ("readout", [f"r{i}" for i in range(12)] + ["time"], ["r6", "time"]),
    ],
)
def test_what_is_read_by_default(architecture, strong, weak):
    network = new_network(tiny.patcher("sd15"), architecture, "auto", "auto", seed=0)
    assert network.branch_taps == {"strong": tuple(strong), "weak": tuple(weak)}
    assert not any(parameter.is_inference() for parameter in network.parameters())


def test_new_networks_leave_the_random_numbers_of_every_device(monkeypatch):
    """torch.manual_seed seeds all devices, and fork_rng keeps the CPU's state alone."""
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("all devices were seeded"))
    before = torch.get_rng_state()

    model = tiny.patcher()
    first, again, other = (
        new_network(model, "pixel_mlp", "o1", "o1", seed).state_dict() for seed in (0, 0, 1)
    )
    new_classifier(model, "o1", 2, 0)

    assert torch.equal(torch.get_rng_state(), before)
    weight = "strong.depth.weight"
    assert torch.equal(first[weight], again[weight])
    assert not torch.equal(first[weight], other[weight])


@pytest.mark.parametrize("architecture", ["pixel_mlp", "readout"])
def test_a_head_and_its_report(tmp_path, architecture):
    model = tiny.patcher("small")
    before = tiny.sample(model)
    head, report = train(model, architecture=architecture)

    assert report.shape[0] == 1
    assert report.shape[2:] == (1200, 3)
    assert report.min() >= 0
    assert report.max() <= 1
    assert head.head.training["images"] == 5
    assert head.head.training["held_out"] == 1
    assert torch.equal(tiny.sample(model), before)

    path = tmp_path / "trained.safetensors"
    save_depth_head(path, head.head)
    loaded = load_depth_head(path)
    assert loaded.training == head.head.training
    assert all(torch.equal(value, weights(head)[name]) for name, value in loaded.network.state_dict().items())
    assert loaded.calibration.consistency == head.head.calibration.consistency
    assert min(loaded.calibration.consistency.means) > 0
    assert torch.equal(loaded.calibration.depth, head.head.calibration.depth)
    assert loaded.calibration.depth.shape == (6, 4, 16, 12)


class VideoVAE(FourfoldVAE):
    """16 channels, and an axis for the frame, as the VAE of Qwen-Image has it."""

    def encode(self, pixels):
        return super().encode(pixels).repeat(1, 4, 1, 1).unsqueeze(2)


def test_a_latent_head_is_trained_without_the_model(tmp_path):
    model = tiny.patcher("small")
    passes = tiny.watch(model)
    head, report = train(model, architecture="latent", steps=6)

    assert len(passes) == 0
    assert report.shape[2:] == (1200, 3)
    assert str(head.head.model_family) == "SD15 (4 channels, scale 0.1822)"
    assert head.head.network.branch_taps == {"strong": ("x0",)}
    untrained = new_network(model, "latent", "auto", "auto", seed=0).state_dict()
    for name, _ in head.head.network.named_parameters():
        assert not torch.equal(weights(head)[name], untrained[name])
    path = tmp_path / "trained.safetensors"
    save_depth_head(path, head.head)
    assert load_depth_head(path).model_family == head.head.model_family
    assert load_depth_head(path).calibration.consistency is None
    assert load_depth_head(path).calibration.depth.shape == (6, 4, 16, 12)


@pytest.mark.parametrize(
    ("kind", "vae", "name"),
    [("qwen", VideoVAE(), "Wan21 (16 channels, scales"), ("inpaint", FourfoldVAE(), "SD15 (4 channels")],
)
def test_latent_heads_of_other_models(kind, vae, name):
    model = tiny.patcher(kind, "FLUX" if kind == "qwen" else "EPS")
    head, _ = train(model, vae=vae, architecture="latent", steps=1)
    assert str(head.head.model_family).startswith(name)


def test_a_latent_head_refuses_the_vae_of_another_model():
    with pytest.raises(ValueError, match="this model needs images of 16 channels: encode"):
        train(tiny.patcher("flux", "FLUX"), architecture="latent")


def test_the_same_seed_gives_the_same_head():
    first, second, other = (train(seed=seed)[0] for seed in (0, 0, 1))
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())
    assert not all(torch.equal(value, weights(other)[name]) for name, value in weights(first).items())


def test_blocks_can_be_chosen():
    head, _ = train(tiny.patcher("small"), blocks="o2, m0, i1", weak_blocks="r1")
    assert list(head.head.network.taps) == ["i1", "m0", "r1", "o2"]
    assert head.head.network.branch_taps == {"strong": ("i1", "m0", "o2"), "weak": ("r1",)}
    assert head.head.model_family == "a UNet of 32 channels with a context of 16"


@pytest.mark.slow
def test_every_unet_family_trains():
    for kind, model_type in (
        ("sdxl", "EPS"),
        ("small", "V_PREDICTION"),
        ("small", "EDM"),
        ("inpaint", "EPS"),
    ):
        model = tiny.patcher(kind, model_type)
        head, _ = train(model, batch_size=1, steps=2)
        untrained = new_network(model, "pixel_mlp", "auto", "auto", seed=0).state_dict()
        assert all(value.isfinite().all() for value in weights(head).values())
        for name, _ in head.head.network.named_parameters():
            assert not torch.equal(weights(head)[name], untrained[name])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"depths": pairs(5)}, r"There are 6 images but 5 depth maps: connect .* in the same order\.$"),
        ({"depths": pairs(1)}, r"6 images but 1 depth maps: .* as a list, put Rebatch Images in front"),
        ({"images": pairs(1), "depths": pairs()}, r"1 images but 6 depth maps: .* put Rebatch Images in"),
        ({"images": pairs(1)}, "needs at least two images .* as a list, put Rebatch Images in front"),
        ({"images": pairs(6)[:0]}, "needs at least two images"),
        ({"images": pairs(4, 3, 3)}, "The images are 3 x 3, less than the VAE can encode"),
        ({"images": pairs(4, 8, 8)}, r"The latent is 2 x 2, too small .* of at least 32 x 32 pixels"),
        ({"images": pairs(4)[:, :0]}, "have no pixels"),
        ({"images": pairs(4)[..., 0]}, "images has 3 dimensions, and images have 4"),
        ({"depths": pairs(6, 64, 64)}, "The images are 48 x 64, the depth maps 64 x 64: use depth maps"),
        (
            {"depths": torch.full((6, 64, 48, 3), 0.4)},
            r"depths: 6 of the 6 depth maps have a single grey value",
        ),
        ({"depths": torch.full((6, 64, 48, 3), torch.nan)}, "depths has values that are not finite"),
        ({"images": pairs(6) * torch.nan, "depths": pairs(6), "vae": None}, "images has values that are not"),
        ({"blocks": "u3"}, "this model has no block u3"),
        ({"architecture": "readout", "blocks": "o2-o3"}, "has no block o2. It has r0-r3"),
        ({"near": 5.0, "far": 2.0}, "must be above 0 and below far"),
    ],
)
def test_what_cannot_be_trained_on_is_one_sentence(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(**changed)


class CountingVAE(FourfoldVAE):
    encoded = 0

    def encode(self, pixels):
        self.encoded += len(pixels)
        return super().encode(pixels)


def test_labels_are_cropped_with_the_images():
    """Of 50 rows the VAE drops one above and one below: a label that is white there alone is black."""
    images, vae = pairs(4, 50, 48), CountingVAE()
    depths = torch.zeros_like(images)
    depths[:, 0] = depths[:, -1] = 1.0
    with pytest.raises(ValueError, match="have a single grey value"):
        train(images=images, depths=depths, vae=vae)
    assert vae.encoded == 1


def overflowing(model):
    model.set_model_output_block_patch(lambda h, skipped, options: (h * torch.inf, skipped))
    return model


UNREADABLE = {
    "in tiles": (
        lambda model: wrappers.wrapped(model, wrappers.tiled([(0, 0, 16, 6), (0, 6, 16, 6)])),
        "a node on it evaluates the latent in tiles",
    ),
    "not finite": (overflowing, "features are not finite at this precision: start ComfyUI with"),
}


@pytest.mark.parametrize("case", UNREADABLE)
@pytest.mark.parametrize(
    ("node", "labels"),
    [(InnerTrainDepthHead, {"depths": pairs()}), (InnerTrainClassifierHead, {"class_names": "a * 3\nb * 3"})],
    ids=["depth", "classes"],
)
def test_features_that_cannot_be_read_are_named_before_the_second_image(node, labels, case):
    change, sentence = UNREADABLE[case]
    vae = CountingVAE()
    with pytest.raises(ValueError, match=sentence):
        execute(node, model=change(tiny.patcher()), vae=vae, images=pairs(), steps=1, **labels)
    assert vae.encoded == 1


def test_a_latent_head_is_trained_beside_tiles():
    change, _ = UNREADABLE["in tiles"]
    head, _ = train(change(tiny.patcher()), architecture="latent", steps=1)
    assert all(value.isfinite().all() for value in weights(head).values())


def test_progress_counts_images_and_steps(monkeypatch):
    seen = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *args, **kwargs: seen.append((value, total))
    )
    train(steps=4)
    assert seen[0] == (1, 10)
    assert [value for value, _ in seen] == sorted(value for value, _ in seen)
    assert {total for _, total in seen} == {10}
