"""The depth prior in the host: its UNet, its files, its nodes."""

import os
from functools import partial

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors import safe_open
from safetensors.torch import save_file

from inner_guidance.depth_head import prior
from inner_guidance.depth_head.prior_files import save_depth_prior
from inner_guidance.host.depth import priors
from inner_guidance.host.depth.priors import make_unet
from inner_guidance.nodes.depth_prior_files import FOLDER, InnerLoadDepthPrior, InnerSaveDepthPrior
from inner_guidance.nodes.train_depth_prior import InnerTrainDepthPrior
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.node_defaults import execute

pytestmark = pytest.mark.oldest_host


@pytest.fixture(autouse=True)
def short_report(monkeypatch):
    """One map, drawn in few steps: the report takes longer than the training of these tests."""
    monkeypatch.setattr(priors, "SHOWN", 1)
    monkeypatch.setattr(priors, "draw", partial(prior.draw, steps=12))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/depth_priors, which does not exist yet."""
    made = tmp_path / "models" / FOLDER
    _, extensions = folder_paths.folder_names_and_paths[FOLDER]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, FOLDER, ([str(made)], extensions))
    return made


def ramps(count=3):
    """Depth images: brighter to the right, by another amount in each."""
    across = torch.linspace(0, 1, 48).expand(1, 32, 48)
    return torch.cat([across * (i + 1) / count for i in range(count)])[..., None].expand(-1, -1, -1, 3)


def train(depths=None, **settings):
    given = {"depths": ramps() if depths is None else depths, "steps": 2, "batch_size": 2}
    return execute(InnerTrainDepthPrior, **given | settings)


def made_here():
    with torch.inference_mode(False):
        torch.manual_seed(0)
        unet = make_unet().requires_grad_(False).eval()
    return prior.DepthPrior(unet, 64, {"maps": 5})


def test_the_schedule_is_the_hosts():
    sigmas = tiny.patcher().get_model_object("model_sampling").sigmas

    torch.testing.assert_close(prior.schedule().float(), 1 / (1 + sigmas**2), rtol=1e-4, atol=1e-6)


def test_training_gives_a_prior_and_a_report():
    random_state = torch.get_rng_state()

    trained, report = train()

    assert trained.training["maps"] == 3
    assert trained.training["steps"] == 2
    assert report.shape[0] == 1
    assert report.shape[-1] == 3
    assert report.isfinite().all()
    assert not any(p.is_inference() or p.requires_grad for p in trained.unet.parameters())
    assert torch.equal(random_state, torch.get_rng_state())


def test_a_seed_is_a_prior():
    first, again, other = (train(seed=seed, steps=1, batch_size=1)[0].unet.state_dict() for seed in (1, 1, 2))

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_training_that_diverges_names_the_learning_rate():
    with pytest.raises(ValueError, match=r"diverged after \d+ steps: .* Lower learning_rate"):
        train(learning_rate=1.0, steps=60, size="32")


def cancel_in_pass(monkeypatch, cancel, number):
    """The user presses Cancel in the UNet's pass of this number, counted from 1."""
    forward, passes = UNetModel.forward, [0]

    def counted(self, *args, **kwargs):
        passes[0] += 1
        if passes[0] == number:
            cancel()
            comfy.model_management.throw_exception_if_processing_interrupted()
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(UNetModel, "forward", counted)


def test_an_interruption_before_the_first_step_ends_the_graph(cancel, monkeypatch):
    cancel()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(steps=1000)
    cancel_in_pass(monkeypatch, cancel, 1)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(steps=1000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "number", "done", "shown"),
    [(1000, 2, 1, True), (1000, 4, 3, True), (2, 3, 2, False), (2, 12, 2, False)],
)
def test_an_interruption_inside_a_pass_keeps_the_prior(
    folder, cancel, monkeypatch, steps, number, done, shown
):
    """The last two while the report's maps are drawn."""
    cancel_in_pass(monkeypatch, cancel, number)
    trained, report = train(steps=steps)

    assert trained.training["steps"] == done
    assert report.isfinite().all()
    assert (report.shape[1] > 600) == shown
    assert not any(p.is_inference() or p.requires_grad for p in trained.unet.parameters())
    assert trained.unet.out[-1].weight.abs().max() > 0
    InnerSaveDepthPrior.execute(trained, "kept")
    assert InnerLoadDepthPrior.execute("kept_00001_.safetensors").result[0].training == trained.training


def test_an_interruption_keeps_the_prior(cancel, monkeypatch):
    update = comfy.utils.ProgressBar.update_absolute

    def pressed(self, value, total=None, preview=None):
        update(self, value, total, preview)
        if value == 2:
            cancel()

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", pressed)

    trained, report = train(steps=1000)

    assert trained.training["steps"] == 2
    assert report.isfinite().all()


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        (
            torch.cat([ramps(2), torch.full((1, 32, 48, 3), 0.5)]),
            r"1 of the 3 depth maps have a single grey value",
        ),
        (ramps() * torch.nan, r"values that are not finite"),
        (ramps(1), r"depths is a single map, .* as a list, put Rebatch Images in front"),
        (ramps()[:0], r"depths is empty: connect depth images"),
        (ramps()[:, :0], r"depths is empty: connect depth images"),
    ],
)
def test_depth_maps_that_say_nothing_are_refused(depths, message):
    with pytest.raises(ValueError, match=message):
        train(depths, steps=10**6)


def test_a_saved_prior_is_listed_and_loaded(folder):
    before = made_here()
    said = InnerSaveDepthPrior.execute(before, "rooms/mine").ui.as_dict()["text"]

    (name,) = folder_paths.get_filename_list_(FOLDER)[0]
    assert os.path.basename(name) in said[0]
    loaded = InnerLoadDepthPrior.execute(name).result[0]
    assert (loaded.size, loaded.training) == (64, {"maps": 5})
    expected = before.unet.state_dict()
    for key, weight in loaded.unet.state_dict().items():
        assert torch.equal(weight, expected[key].half().float())
    fingerprint = InnerLoadDepthPrior.fingerprint_inputs(name)
    assert fingerprint == InnerLoadDepthPrior.fingerprint_inputs(name)


def test_priors_are_numbered_and_their_names_checked_as_heads_are(folder):
    said = [InnerSaveDepthPrior.execute(made_here(), "prior").ui.as_dict()["text"][0] for _ in range(2)]
    with pytest.raises(ValueError, match="is reserved on Windows"):
        InnerSaveDepthPrior.execute(made_here(), "NUL")

    assert said == ["Saved as prior_00001_.safetensors", "Saved as prior_00002_.safetensors"]
    assert sorted(os.listdir(folder)) == ["prior_00001_.safetensors", "prior_00002_.safetensors"]


@pytest.mark.parametrize(
    ("entry", "value", "sentence"),
    [
        ("size", "[64]", r"its size cannot be read"),
        ("size", "64.0", r"its size cannot be read"),
        ("size", "7", r"its size is 7"),
        ("training", "[]", r"its training cannot be read"),
        ("target", "", r"its target is missing"),
        (
            "architecture",
            "\x1b" + "x" * 10**5,
            r"has the architecture \\x1bx+…, which this pack does not know",
        ),
    ],
)
def test_a_prior_with_a_foreign_description_is_one_sentence(folder, entry, value, sentence):
    folder.mkdir(parents=True)
    path = folder / "a.safetensors"
    save_depth_prior(path, made_here())
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | {entry: value}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=sentence):
        InnerLoadDepthPrior.execute("a.safetensors")


def test_gradients_pass_a_loaded_prior(folder):
    made = made_here()
    with torch.inference_mode(False):
        torch.nn.init.normal_(made.unet.out[-1].weight, std=0.1)
    InnerSaveDepthPrior.execute(made, "prior")
    unet = InnerLoadDepthPrior.execute("prior_00001_.safetensors").result[0].unet

    with torch.inference_mode(False), torch.enable_grad():
        x = torch.randn(1, 1, 64, 64, requires_grad=True)
        (gradient,) = torch.autograd.grad(unet(x, torch.tensor([300.0])).square().sum(), x)

    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_a_prior_that_is_none_is_one_sentence(folder):
    folder.mkdir(parents=True)
    (folder / "text.safetensors").write_bytes(b"hello, I am no network at all")
    with pytest.raises(ValueError, match=r"text\.safetensors is damaged, or not a safetensors file"):
        InnerLoadDepthPrior.execute("text.safetensors")

    made = made_here()
    made.unet.out[-1].bias.fill_(torch.nan)
    save_depth_prior(folder / "nan.safetensors", made)
    with pytest.raises(ValueError, match=r"nan\.safetensors is damaged \(out\.2\.bias is not finite\)"):
        InnerLoadDepthPrior.execute("nan.safetensors")
