"""InnerLoadDemoModel: its files, and the host's nodes that change, merge, train and save a model."""

import shutil

import folder_paths
import pytest
import torch
from comfy_extras import nodes_hooks, nodes_model_merging, nodes_train
from safetensors.torch import load_file, save_file

import nodes as stock
from inner_guidance.demo import model as demo
from inner_guidance.nodes.demo_model import InnerLoadDemoModel
from inner_guidance.tests.support.lora_training import trained

FILES = (
    demo.UNET_FILE,
    demo.TEXT_FILE,
    demo.AUTOENCODER_FILE,
    demo.DEPTH_HEAD_FILE,
    demo.DEPTH_PRIOR_FILE,
    demo.CLASSIFIER_HEAD_FILE,
    demo.LATENT_HEAD_FILE,
)


@pytest.fixture(scope="module")
def loaded():
    with torch.inference_mode():
        return InnerLoadDemoModel.execute().args[:3]


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A copy of the weight files, in the place of the real ones."""
    folder = shutil.copytree(demo.WEIGHTS, tmp_path / "weights")
    monkeypatch.setattr(demo, "WEIGHTS", folder)
    return folder


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The host's folders for outputs and LoRA files, empty."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    return tmp_path


@pytest.fixture
def lora(models):
    """A LoRA file for all attention of the UNet and a layer of the text encoder, in the usual names."""
    generator = torch.Generator().manual_seed(0)
    unet, text = (demo.read_weights(demo.WEIGHTS / name) for name in (demo.UNET_FILE, demo.TEXT_FILE))
    layers = {
        f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}": weight
        for name, weight in unet.items()
        if ".attn" in name and name.endswith(".weight")
    }
    layers["text_encoders.mix"] = text["mix.weight"]
    content = {}
    for name, weight in layers.items():
        rows, columns = weight.shape
        content[f"{name}.lora_up.weight"] = 0.3 * torch.randn(rows, 4, generator=generator)
        content[f"{name}.lora_down.weight"] = 0.3 * torch.randn(4, columns, generator=generator)
        content[f"{name}.alpha"] = torch.tensor(4.0)
    save_file(content, models / "made.safetensors")
    return "made.safetensors"


def draw(model, clip, positive=None):
    """Two steps at 128 px: enough to see whether two models are the same."""
    positive = positive or stock.CLIPTextEncode().encode(clip, "red sphere, white wall")[0]
    negative = stock.CLIPTextEncode().encode(clip, "")[0]
    latent = stock.EmptyLatentImage().generate(128, 128)[0]
    return stock.KSampler().sample(model, 5, 2, 3.0, "euler", "normal", positive, negative, latent)[0][
        "samples"
    ]


def assert_same(state_dict, prefix, file):
    """Below a prefix are exactly the tensors of a weight file."""
    found = {name.removeprefix(prefix): w for name, w in state_dict.items() if name.startswith(prefix)}
    wanted = demo.read_weights(demo.WEIGHTS / file)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name].float(), wanted[name].float()) for name in wanted)


def test_weights_are_taken_over_whole(loaded):
    model, clip, vae = loaded

    assert_same(model.model.diffusion_model.state_dict(), "", demo.UNET_FILE)
    assert_same(clip.get_sd(), "", demo.TEXT_FILE)
    assert_same(vae.get_sd(), "", demo.AUTOENCODER_FILE)


def test_weights_and_pictures_are_small_enough_for_the_repository(root):
    pictures = [
        path
        for folder in ("docs", "web", "workflows")
        for kind in ("jpg", "png")
        for path in (root / folder).rglob(f"*.{kind}")
    ]
    assert len(pictures) > 40
    assert sum(path.stat().st_size for path in [*demo.WEIGHTS.iterdir(), *pictures]) < 40e6


def test_runs_again_when_a_file_was_replaced(weights):
    before = InnerLoadDemoModel.fingerprint_inputs()
    changed = load_file(weights / demo.TEXT_FILE)
    changed["mix.bias"] = changed["mix.bias"] + 1
    assert before == InnerLoadDemoModel.fingerprint_inputs()

    save_file(changed, weights / demo.TEXT_FILE)
    assert before != InnerLoadDemoModel.fingerprint_inputs()


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_one_sentence(weights, name):
    (weights / name).unlink()

    InnerLoadDemoModel.fingerprint_inputs()
    with pytest.raises(
        ValueError, match=rf"file {name} is missing\. Run `git checkout -- demo/weights/{name}`"
    ):
        InnerLoadDemoModel.execute()


@pytest.mark.parametrize(
    "damage", [lambda content: content[:1000], lambda content: b"", lambda content: b"<!doctype html>"]
)
@pytest.mark.parametrize("name", FILES)
def test_damaged_file_is_one_sentence(weights, name, damage):
    (weights / name).write_bytes(damage((weights / name).read_bytes()))

    with pytest.raises(ValueError, match=rf"file {name} is damaged .*`git checkout -- demo/weights/{name}`"):
        InnerLoadDemoModel.execute()


@pytest.mark.slow
def test_reload_gives_weights_of_its_own(loaded):
    """What TrainLoraNode and the nodes for several GPUs ask of a loader."""
    model, clip, vae = loaded
    with torch.inference_mode(False):
        copy = model.clone(force_deepcopy=True)
        parts = [
            (copy, model),
            *((part.patcher.clone(force_deepcopy=True), part.patcher) for part in (clip, vae)),
        ]
        for reloaded, original in parts:
            first, second = (dict(patcher.model.named_parameters()) for patcher in (reloaded, original))
            assert first.keys() == second.keys()
            for name, weight in first.items():
                assert torch.equal(weight, second[name])
                assert weight.data_ptr() != second[name].data_ptr()
                assert not weight.is_inference()
    assert torch.equal(draw(copy, clip), draw(model, clip))


def test_lora_changes_the_picture_and_strength_0_does_not(loaded, lora, caplog):
    model, clip, _ = loaded
    plain = draw(model, clip)
    both = stock.LoraLoader().load_lora(model, clip, lora, 1.0, 1.0)
    assert "lora key not loaded" not in caplog.text
    unet_only = stock.LoraLoaderModelOnly().load_lora_model_only(model, lora, 1.0)[0]
    off = stock.LoraLoader().load_lora(model, clip, lora, 0.0, 0.0)

    assert not torch.allclose(draw(*both), plain, atol=1e-3)
    assert not torch.allclose(draw(unet_only, clip), plain, atol=1e-3)
    assert not torch.equal(draw(model, both[1]), plain)
    assert torch.equal(draw(*off), plain)


def test_lora_as_a_hook_of_the_prompt(loaded, lora):
    model, clip, _ = loaded
    hooks = nodes_hooks.CreateHookLora().create_hook(lora, 1.0, 1.0)[0]
    hooked = nodes_hooks.SetClipHooks().apply_hooks(clip, False, True, hooks)[0]
    positive = stock.CLIPTextEncode().encode(hooked, "red sphere, white wall")[0]
    plain = draw(model, clip)

    assert not torch.allclose(draw(model, clip, positive), plain, atol=1e-3)
    assert torch.equal(draw(model, clip), plain)


@pytest.mark.slow
def test_lora_trained_by_the_host(loaded, models):
    model, clip, _ = loaded
    plain = draw(model, clip)
    lora, losses = trained(model, clip)
    nodes_train.SaveLoRA.execute(lora, "trained")
    (file,) = models.glob("trained*.safetensors")
    patched = stock.LoraLoaderModelOnly().load_lora_model_only(model, file.name, 1.0)[0]

    assert len(losses) == 3
    assert torch.equal(draw(model, clip), plain)
    assert not torch.equal(draw(patched, clip), plain)


@pytest.mark.slow
def test_merge(loaded, lora):
    model, clip, _ = loaded
    other = stock.LoraLoaderModelOnly().load_lora_model_only(model, lora, 1.0)[0]
    first, half, second = (
        draw(nodes_model_merging.ModelMergeSimple().merge(model, other, ratio)[0], clip)
        for ratio in (1.0, 0.5, 0.0)
    )

    torch.testing.assert_close(first, draw(model, clip), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(second, draw(other, clip), rtol=1e-3, atol=1e-3)
    whole_way = (second - first).abs().mean()
    assert (half - first).abs().mean() > 0.1 * whole_way
    assert (half - second).abs().mean() > 0.1 * whole_way


def test_saved_checkpoint_holds_the_three_files(loaded, models):
    nodes_model_merging.CheckpointSave().save(*loaded, "whole")
    (file,) = models.glob("whole*.safetensors")
    saved = load_file(file)

    assert_same(saved, "model.diffusion_model.", demo.UNET_FILE)
    assert_same(saved, "cond_stage_model.", demo.TEXT_FILE)
    assert_same(saved, "first_stage_model.", demo.AUTOENCODER_FILE)
