"""Train Classifier Head: named images to latents, and classifier_head/training.py on the frozen model."""

import logging
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...classifier_head.classifier_report import LOSS, draw_classifier_report
from ...classifier_head.head import ClassifierHead, folded
from ...classifier_head.network import ClassifierNetwork
from ...classifier_head.training import ClassifierResult, ClassifierTrainingSettings, train_classifier
from ...depth_head.files import LONGEST_QUOTE, is_name, legible
from ...pictures.images import FROM_A_LIST, require_finite, require_images
from ..depth.head_training import AUTO, default_blocks, features_of
from ..depth.heads import feature_channels, model_family
from ..depth.training_pairs import encode
from ..depth.training_watch import TrainingWatch
from ..sampling.frozen_model import (
    Conditioning,
    FrozenModel,
    require_features,
    require_prompt,
    with_frozen_model,
)
from ..taps.blocks import feature_blocks, layer_names, parse_blocks
from ..taps.joint_models import joint_model
from ..taps.uncompiled import refuse_uncontrollable_compiler
from .heads import HostedClassifierHead

REPEATED = re.compile(r"(.*?)\s*\*\s*(\d{1,6})")


@dataclass(frozen=True)
class TrainedClassifier:
    """The outputs of the node: the head and the report (1, H, W, 3)."""

    head: HostedClassifierHead
    report: Tensor


def train_classifier_head(
    model: ModelPatcher,
    vae: Any,
    images: Tensor,
    class_names: str,
    blocks: str,
    settings: ClassifierTrainingSettings,
    positive: Conditioning | None,
) -> TrainedClassifier:
    """Train a head on images (N, H, W, 3) and the class of each (read_class_names).

    Raises ValueError before any long work if the names do not match the images, and if a block does not exist
    or cannot be read.
    """
    require_images(images, "images")
    require_finite(images, "images")
    names = read_class_names(class_names, len(images))
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        raise ValueError(
            f"class_names: all images are '{classes[0]}'. A classifier needs images of two classes at least."
        )
    if len(classes) == len(names):
        raise ValueError(
            "class_names: no class has two images. A classifier needs one to learn from and one to judge by; "
            "use a few dozen of each class."
        )
    family = model_family(model)
    network = new_classifier(model, blocks, len(classes), settings.seed)
    require_prompt(model, positive)
    refuse_uncontrollable_compiler(model, "Train Classifier Head")
    progress = comfy.utils.ProgressBar(len(images) + settings.steps)
    first = encode(model, vae, images[:1], progress)
    require_features(model, positive, list(network.taps), first)
    latents = torch.cat([first, encode(model, vae, images[1:], progress)])
    labels = torch.tensor([classes.index(name) for name in names])

    def work(frozen: FrozenModel) -> ClassifierResult:
        watch = TrainingWatch(LOSS, progress, len(images))
        return train_classifier(
            network,
            features_of(frozen, latents, list(network.taps)),
            labels,
            settings,
            frozen.device,
            watch.on_step,
            comfy.model_management.InterruptProcessingException,
        )

    result = with_frozen_model(model, positive, (settings.batch_size, *latents.shape[1:]), work)
    if result.interrupted:
        logging.info(
            "Train Classifier Head: interrupted after %d steps; the best head so far, after %d, is kept.",
            len(result.losses),
            result.best_step,
        )
    head = ClassifierHead(network, family, classes, summary(result, settings, len(images)), "this head")
    heading = (
        f"{len(classes)} classes, from {', '.join(network.taps)} of {family}; {len(result.losses)} steps"
    )
    report = draw_classifier_report(result, len(classes), heading)
    return TrainedClassifier(HostedClassifierHead.of(head), report[None])


def summary(result: ClassifierResult, settings: ClassifierTrainingSettings, images: int) -> dict[str, Any]:
    """The summary of the training for the head's file."""
    return {
        "images": images - result.held_out,
        "held_out": result.held_out,
        "steps": len(result.losses),
        "kept_after": result.best_step,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "seed": settings.seed,
        "accuracy": {str(time): round(value, 4) for time, value in result.accuracy.items()},
    }


def read_class_names(text: str, count: int) -> list[str]:
    """The class of each of `count` images: a line for each, in order; "cat * 12" stands for twelve lines.

    Raises ValueError for another number of names, names that are too long, and names that differ in capitals
    only: Classifier Guidance takes either for the other.
    """
    named: list[tuple[str, int]] = []
    spelled: dict[str, str] = {}
    # Names of files on a Mac have their accents apart.
    for line in filter(None, map(str.strip, unicodedata.normalize("NFC", text).splitlines())):
        repeated = REPEATED.fullmatch(line)
        name, times = (repeated[1], int(repeated[2])) if repeated else (line, 1)
        if not is_name(name):
            raise ValueError(
                f"class_names: '{legible(line)}' is not a class name: use 1 to {LONGEST_QUOTE} characters, "
                "all of them visible or plain spaces."
            )
        first = spelled.setdefault(folded(name), name)
        if first != name:
            raise ValueError(
                f"class_names: '{first}' and '{name}' differ in capitals only: write one of them."
            )
        named.append((name, times))
    total = sum(times for _, times in named)
    if total != count:
        raise ValueError(
            f"class_names names {total} images, and there are {count}: write the class of each image on a "
            "line of its own, in the order of the images, or 'cat * 12' for twelve in a row."
            + (f" {FROM_A_LIST}" if count == 1 else "")
        )
    return [name for name, times in named for _ in range(times)]


def new_classifier(model: ModelPatcher, blocks: str, classes: int, seed: int) -> ClassifierNetwork:
    """A network for this model with random weights from the seed. Raises ValueError for the blocks."""
    diffusion_model: Any = model.get_model_object("diffusion_model")
    channels, available = feature_channels(diffusion_model), feature_blocks(diffusion_model)
    is_transformer = joint_model(diffusion_model) is not None
    if blocks.strip().lower() == AUTO:
        chosen, _ = default_blocks(diffusion_model, "pixel_mlp")
        if not is_transformer and "m0" in available:
            chosen = ["m0", *chosen]
    else:
        names = layer_names(available)
        chosen = [names[layer] for layer in parse_blocks(blocks, available)]
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # no other device's
        taps = {name: channels[name] for name in chosen}
        return ClassifierNetwork(taps, classes, token_norm=is_transformer)
