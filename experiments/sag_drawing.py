"""Draws the rows of sag_experiment.py, and keeps the latents and what the judges see in each picture.

They lie in files of BATCH pictures, in folders whose names are digests of all that determines them: settings
and weights, and the judges. Existing files are not made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from safetensors.torch import load_file
from torch import Tensor

from ..classifier_head.head_files import load_classifier_head
from ..demo import model as demo
from ..demo.ray_casting import render
from ..demo.recogniser import PAIRS, shown_solids
from ..demo.scenes import sample_scene
from ..demo.sheet import conditioning, decode
from ..guidance import self_attention
from ..host.classifier.heads import HostedClassifierHead
from ..nodes.classifier_guidance import InnerClassifierGuidance
from ..nodes.self_attention_guidance import InnerSelfAttentionGuidance
from .kept_files import checksum, save
from .node_inputs import with_defaults
from .other_seeds import folder_of
from .sag_judges import SagJudges
from .sag_rows import Group, Row, Seen
from .set_figures import effective_scale
from .square_mask import centre_tokens

BATCH = 20
SAMPLER = "dpmpp_2m"


class SagDrawing:
    """A demo model, the judges by the seed of their training, and the work folder."""

    def __init__(self, work: Path, family: str, dtype: torch.dtype) -> None:
        files = demo.FAMILIES[family]
        self.scheduler = files.scheduler
        self.model, self.clip, self.vae = demo.load_all(demo.WEIGHTS, family)
        network: Any = self.model.get_model_object("diffusion_model").to(dtype)
        network.dtype = dtype  # by which the host casts the inputs
        self.judges: dict[int, SagJudges] = {}
        self.classifiers: dict[int, HostedClassifierHead] = {}
        self.drawn_by = [checksum(demo.WEIGHTS / name) for name in (files.model, demo.TEXT_FILE)]
        self.dtype = dtype
        self.work = work

    def row(self, group: Group, name: str, count: int) -> Seen:
        """What the judges see in the first pictures of a row; missing ones are drawn."""
        return concatenate([self.batch(group, name, first) for first in batches(group.seeds, count)], count)

    def batch(self, group: Group, name: str, first: int) -> Seen:
        """What the judges see in BATCH pictures, from seed `first` on."""
        path = self.path(group, name, first)
        if not path.exists():
            drawn = self.drawn(group, name, first)
            seen = self.judges_of(group).look(decode(self.vae, drawn.pop("latents")))
            save(path, **seen, **drawn)
        return load_file(path)

    def drawn(self, group: Group, name: str, first: int) -> Seen:
        """Latents, seconds and scale of BATCH pictures, from seed `first` on, for any judges."""
        path = self.work / digest(self.made_by(group, name)) / f"{first}.safetensors"
        if not path.exists():
            latents, seconds, scale = self.sample(group, name, range(first, first + BATCH))
            save(path, latents=latents, seconds=torch.full((BATCH,), seconds), scale=scale)
        return load_file(path)

    def renders(self, group: Group, seeds: range, count: int) -> Seen:
        """What a group's judges see in renders after the autoencoder."""
        return concatenate([self.rendered(group, first) for first in batches(seeds, count)], count)

    def rendered(self, group: Group, first: int) -> Seen:
        """What a group's judges see in BATCH renders after the autoencoder, from seed `first` on."""
        judges = self.judges_of(group)
        path = self.work / f"renders-{digest(judges.judged_by)}" / f"{first}.safetensors"
        if not path.exists():
            save(path, **judges.look(decode(self.vae, self.encoded(first))))
        return load_file(path)

    def encoded(self, first: int) -> Tensor:
        """The latents of BATCH renders, from seed `first` on."""
        encoder = checksum(demo.WEIGHTS / demo.AUTOENCODER_FILE)
        path = self.work / f"renders-{digest([encoder])}" / f"{first}.safetensors"
        if not path.exists():
            rgb = [render(sample_scene(first + i)).rgb.movedim(0, -1) for i in range(BATCH)]
            save(path, latents=self.vae.encode(torch.stack(rgb)).cpu())
        return load_file(path)["latents"]

    def judges_of(self, group: Group) -> SagJudges:
        """The judges of a group, loaded once."""
        if group.judges not in self.judges:
            self.judges[group.judges] = SagJudges(group.judges)
        return self.judges[group.judges]

    def classifier(self, seed: int) -> HostedClassifierHead:
        """The classifier head of a training seed, loaded once."""
        if seed not in self.classifiers:
            self.classifiers[seed] = HostedClassifierHead.of(load_classifier_head(classifier_file(seed)))
        return self.classifiers[seed]

    def sample(self, group: Group, name: str, seeds: Sequence[int]) -> tuple[Tensor, float, Tensor]:
        """Latents of a row, CPU seconds for each, and their effective CFG scales."""
        row = group.rows[name]
        cfg = self.cfg(group, row)
        latent = torch.zeros(len(seeds), 4, 32, 32)
        noise = torch.cat([comfy.sample.prepare_noise(latent[:1], seed) for seed in seeds])
        captions = [sample_scene(seed).caption if group.captions else "" for seed in seeds]
        results: list[tuple[Tensor, Tensor, Tensor]] = []

        def record(args: dict[str, Any]) -> Tensor:
            results.append((args["denoised"], args["cond_denoised"], args["uncond_denoised"]))
            return args["denoised"]

        started = time.process_time()
        with self.guided_model(row, " ".join(PAIRS[class_of(seeds[0])])) as model:
            if cfg != 1:
                model = model.clone()
                model.set_model_sampler_post_cfg_function(record)
            drawn = comfy.sample.sample(
                model,
                noise,
                row.steps,
                cfg,
                SAMPLER,
                self.scheduler,
                conditioning(self.clip, captions),
                conditioning(self.clip, [""]),
                latent,
                seed=seeds[0],
                disable_pbar=True,
            ).cpu()
        seconds = (time.process_time() - started) / len(seeds)
        if not results:
            return drawn, seconds, torch.full((len(seeds),), torch.nan)
        return (
            drawn,
            seconds,
            effective_scale(*(torch.stack(of_steps, 1) for of_steps in zip(*results, strict=True))),
        )

    def cfg(self, group: Group, row: Row) -> float:
        """The CFG scale of a row."""
        if not row.as_strong_as:
            return group.cfg
        return round(self.batch(group, row.as_strong_as, group.seeds[0])["scale"].mean().item(), 2)

    @contextlib.contextmanager
    def guided_model(self, row: Row, class_name: str) -> Iterator[ModelPatcher]:
        """The model with the guidance of a row. The order is the paper's: SAG, then the classifier."""
        model: Any = self.model
        if row.classifier:
            inputs = with_defaults(InnerClassifierGuidance, class_name=class_name, scale=row.classifier)
            (model,) = InnerClassifierGuidance.execute(
                model, self.classifier(row.classifier_seed), **inputs
            ).result
        if row.attention is not None:
            inputs = with_defaults(InnerSelfAttentionGuidance, **attention_inputs(row))
            (model,) = InnerSelfAttentionGuidance.execute(model, **inputs).result
        if row.perturbed:
            (model,) = PerturbedAttentionGuidance.execute(model, row.perturbed).result
        square = mock.patch.object(self_attention, "shuffle_tokens", centre_tokens)
        with square if row.square else contextlib.nullcontext():
            yield model

    def path(self, group: Group, name: str, first: int) -> Path:
        """The file of what the judges see in BATCH pictures. Rows of the same settings share it."""
        made_by = self.made_by(group, name)
        made_by["weights"] = [*self.drawn_by, *self.judges_of(group).judged_by]
        return self.work / digest(made_by) / f"{first}.safetensors"

    def made_by(self, group: Group, name: str) -> dict[str, Any]:
        """All that determines the latents of a row."""
        row = group.rows[name]
        made_by = asdict(row) | {"cfg": self.cfg(group, row), "captions": group.captions}
        del made_by["as_strong_as"], made_by["classifier_seed"]
        if row.classifier:
            made_by["classifier head"] = checksum(classifier_file(row.classifier_seed))
        else:
            del made_by["classifier"]
        made_by |= {"sampler": [SAMPLER, self.scheduler], "weights": self.drawn_by}
        made_by["dtype"] = str(self.dtype)
        if row.attention is not None:
            made_by["attention"] = with_defaults(InnerSelfAttentionGuidance, **attention_inputs(row))
        return made_by


def classifier_file(seed: int) -> Path:
    """The classifier head of a training seed; 0 for the demo model's."""
    return folder_of(seed) / demo.CLASSIFIER_HEAD_FILE


def attention_inputs(row: Row) -> dict[str, Any]:
    """The inputs of Self-Attention Guidance that a row sets."""
    return dict(row.attention or {}) | ({"mask": "random"} if row.square else {})


def shown(seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The kinds of solids that each seed's scene shows, (N, kinds), and the kind of its largest, (N,)."""
    scenes = [sample_scene(seed) for seed in seeds]
    return shown_solids(scenes, [render(scene, 64).surface for scene in scenes])


def class_of(seed: int) -> int:
    """The class that the batch of a seed is guided to, a number in PAIRS; the batches have them in turn."""
    return seed // BATCH % len(PAIRS)


def batches(seeds: range, count: int) -> range:
    """The first seeds of the batches of `count` pictures."""
    return range(seeds.start, seeds.start + count, BATCH)


def concatenate(parts: Sequence[Seen], count: int) -> Seen:
    """The first `count` pictures of batches."""
    return {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}


def digest(made_by: Any) -> str:
    """12 digits that stand for settings."""
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:12]
