"""Train, Save and Load Classifier Head in the host, on a tiny model."""

import folder_paths
import pytest
import torch
from comfy.model_management import InterruptProcessingException

from inner_guidance.host.classifier import training
from inner_guidance.host.classifier.training import read_class_names
from inner_guidance.nodes.classifier_head_files import (
    FOLDER,
    InnerLoadClassifierHead,
    InnerSaveClassifierHead,
)
from inner_guidance.nodes.train_classifier_head import InnerTrainClassifierHead
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.classifier_models import classifier_guided
from inner_guidance.tests.support.node_defaults import execute
from inner_guidance.tests.support.pixel_vae import PixelVAE

pytestmark = pytest.mark.oldest_host


def red_and_blue(count):
    """Red and blue images in turn."""
    images = torch.rand(count, 64, 64, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    images[::2, ..., 0] += 0.9
    images[1::2, ..., 2] += 0.9
    return images, "\n".join(["red", "blue"] * (count // 2))


def trained(count=8, **settings):
    images, names = red_and_blue(count)
    given = {"images": images, "class_names": names, "steps": 40, "batch_size": 4, "learning_rate": 0.01}
    given |= {"model": tiny.patcher(), "vae": PixelVAE()}
    return execute(InnerTrainClassifierHead, **given | settings)


def test_a_head_is_trained_saved_loaded_and_guides(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, FOLDER, ([str(tmp_path)], {".safetensors"}))
    head, report = trained()
    assert head.head.classes == ("blue", "red")
    assert head.head.training["accuracy"]["50"] == 1
    assert report.shape == (1, 400, 960, 3)

    InnerSaveClassifierHead.execute(head, "colours")
    loaded = InnerLoadClassifierHead.execute("colours_00001_.safetensors").args[0]

    red, again, blue = (
        tiny.sample(classifier_guided(tiny.patcher(), classifier_head=h, class_name=name, scale=100.0))
        for h, name in ((head, "red"), (loaded, "red"), (loaded, "blue"))
    )
    assert torch.equal(red, again)
    tiny.assert_steered(red, blue)


def test_an_interruption_keeps_the_best_head(monkeypatch):
    watch = training.TrainingWatch.on_step

    def interrupt(self, done, losses):
        watch(self, done, losses)
        if done == 6:
            raise InterruptProcessingException

    monkeypatch.setattr(training.TrainingWatch, "on_step", interrupt)
    head, _ = trained()

    assert head.head.training["steps"] == 6


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat\ndog\ncat", ["cat", "dog", "cat"]),
        ("cat * 2\n\n  dog ", ["cat", "cat", "dog"]),
        ("red sphere*3", ["red sphere"] * 3),
        ("caf\u00e9\ncafe\u0301 * 2", ["caf\u00e9"] * 3),
    ],
)
def test_class_names(text, names):
    assert read_class_names(text, 3) == names


def test_names_of_images_that_come_one_by_one():
    with pytest.raises(ValueError, match=r"names 2 images, and there are 1: .* put Rebatch Images in front"):
        read_class_names("cat\ndog", 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cat\ndog", "names 2 images, and there are 3"),
        ("cat\ndog\ncat\ncow", "names 4 images, and there are 3"),
        ("cat * 999999", "names 999999 images, and there are 3"),
        ("", "names 0 images, and there are 3"),
        ("c" * 100, "is not a class name"),
        ("red\u3000ball * 3", r"'red\\u3000ball \* 3' is not a class name: .* visible or plain spaces"),
        ("cat\ndog\nCat", "'cat' and 'Cat' differ in capitals only"),
        ("caf\u00e9\ndog\nCafe\u0301", "'caf\u00e9' and 'Caf\u00e9' differ in capitals only"),
    ],
)
def test_other_numbers_of_names_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        read_class_names(text, 3)


@pytest.mark.parametrize(
    ("count", "names", "said"),
    [(8, "red * 8", "all images are 'red'"), (2, "red\nblue", "no class has two images")],
)
def test_one_class_and_one_image_of_each_are_refused(count, names, said):
    with pytest.raises(ValueError, match=said):
        trained(count, class_names=names)


def test_a_transformer_without_a_prompt_is_refused_before_the_images_are_encoded():
    with pytest.raises(
        ValueError, match="Flux, cannot be evaluated without a prompt: connect one to positive"
    ):
        trained(model=tiny.patcher("flux", model_type="FLUX"), vae=None)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_images_without_finite_numbers_are_refused_before_they_are_encoded(value):
    images, _ = red_and_blue(8)
    images[3, 5, 5] = value
    with pytest.raises(ValueError, match="images has values that are not finite"):
        trained(images=images, vae=None)


class OverflowingVAE(PixelVAE):
    def encode(self, pixels):
        return super().encode(pixels) * torch.inf


def test_images_that_encode_to_no_numbers_are_one_sentence():
    with pytest.raises(ValueError, match="The latent has values that are not finite"):
        trained(vae=OverflowingVAE())
