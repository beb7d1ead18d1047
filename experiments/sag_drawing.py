"""Draws the rows of sag_experiment.py, and keeps what the judges see in each picture.

The judges were trained on renders alone. Their outputs lie in files of BATCH pictures, in a folder whose
name is a digest of all that determines them: settings, weights, judges. Existing files are not made again.
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
from ..demo.depth_judge import DEPTH_JUDGE_FILE, DepthJudge, judge
from ..demo.ray_casting import render
from ..demo.recogniser import PAIRS, RECOGNISER_FILE, Recogniser, main_pair, recognise, scene_labels
from ..demo.scenes import sample_scene
from ..guidance import self_attention
from ..host.classifier.heads import HostedClassifierHead
from ..nodes.classifier_guidance import InnerClassifierGuidance
from ..nodes.self_attention_guidance import InnerSelfAttentionGuidance
from .dag_figures import depth_features
from .dag_pictures import decode
from .kept_files import checksum, save
from .node_inputs import with_defaults
from .sag_rows import Group, Row, Seen
from .set_figures import detail, effective_scale
from .square_mask import centre_tokens

BATCH = 20
SAMPLER = "dpmpp_2m"
CELLS = 8
"""dFID compares depth maps of CELLS x CELLS."""


class SagDrawing:
    """A demo model, the judges, and the work folder."""

    def __init__(self, work: Path, family: str, dtype: torch.dtype) -> None:
        files = demo.FAMILIES[family]
        self.scheduler = files.scheduler
        self.model, self.clip, self.vae = demo.load_all(demo.WEIGHTS, family)
        network: Any = self.model.get_model_object("diffusion_model").to(dtype)
        network.dtype = dtype  # by which the host casts the inputs
        self.recogniser, self.depth_judge = Recogniser().eval(), DepthJudge().eval()
        self.recogniser.load_state_dict(demo.read_weights(demo.WEIGHTS / RECOGNISER_FILE))
        self.depth_judge.load_state_dict(demo.read_weights(demo.WEIGHTS / DEPTH_JUDGE_FILE))
        self.classifier = HostedClassifierHead.of(
            load_classifier_head(demo.WEIGHTS / demo.CLASSIFIER_HEAD_FILE)
        )
        judges = (demo.AUTOENCODER_FILE, RECOGNISER_FILE, DEPTH_JUDGE_FILE)
        self.judged_by = [checksum(demo.WEIGHTS / name) for name in judges]
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
            latents, seconds, scale = self.sample(group, name, range(first, first + BATCH))
            save(path, **self.look(latents), seconds=torch.full((BATCH,), seconds), scale=scale)
        return load_file(path)

    def renders(self, seeds: range, count: int) -> Seen:
        """What the judges see in renders after the autoencoder."""
        return concatenate([self.rendered(first) for first in batches(seeds, count)], count)

    def rendered(self, first: int) -> Seen:
        """What the judges see in BATCH renders after the autoencoder, from seed `first` on."""
        path = self.work / f"renders-{digest(self.judged_by)}" / f"{first}.safetensors"
        if not path.exists():
            rgb = [render(sample_scene(first + i)).rgb.movedim(0, -1) for i in range(BATCH)]
            save(path, **self.look(self.vae.encode(torch.stack(rgb)).cpu()))
        return load_file(path)

    def look(self, latents: Tensor) -> Seen:
        """The judges' outputs for latents."""
        pictures = decode(self.vae, latents)
        recognised = recognise(self.recogniser, pictures)
        return {
            "features": recognised.features,
            "objects": recognised.logits["objects"],
            "depth": depth_features(judge(self.depth_judge, pictures).depth, CELLS),
            "detail": detail(pictures),
        }

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
                self.conditioning(captions),
                self.conditioning([""]),
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
            (model,) = InnerClassifierGuidance.execute(model, self.classifier, **inputs).result
        if row.attention is not None:
            inputs = with_defaults(InnerSelfAttentionGuidance, **attention_inputs(row))
            (model,) = InnerSelfAttentionGuidance.execute(model, **inputs).result
        if row.perturbed:
            (model,) = PerturbedAttentionGuidance.execute(model, row.perturbed).result
        square = mock.patch.object(self_attention, "shuffle_tokens", centre_tokens)
        with square if row.square else contextlib.nullcontext():
            yield model

    def conditioning(self, texts: Sequence[str]) -> list[list[Any]]:
        """A conditioning with one prompt for each picture, or one for all."""
        return [[torch.cat([self.clip.encode_from_tokens(self.clip.tokenize(text)) for text in texts]), {}]]

    def path(self, group: Group, name: str, first: int) -> Path:
        """The file of BATCH pictures. Rows of the same settings share it."""
        row = group.rows[name]
        made_by = asdict(row) | {"cfg": self.cfg(group, row), "captions": group.captions}
        del made_by["as_strong_as"]
        if row.classifier:
            made_by["classifier head"] = checksum(demo.WEIGHTS / demo.CLASSIFIER_HEAD_FILE)
        else:
            del made_by["classifier"]
        made_by |= {"sampler": [SAMPLER, self.scheduler], "weights": [*self.drawn_by, *self.judged_by]}
        made_by["dtype"] = str(self.dtype)
        if row.attention is not None:
            made_by["attention"] = with_defaults(InnerSelfAttentionGuidance, **attention_inputs(row))
        return self.work / digest(made_by) / f"{first}.safetensors"


def attention_inputs(row: Row) -> dict[str, Any]:
    """The inputs of Self-Attention Guidance that a row sets."""
    return dict(row.attention or {}) | ({"mask": "random"} if row.square else {})


def shown(seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The kinds of solids that each seed's scene shows, (N, kinds), and the kind of its largest, (N,)."""
    scenes = [(sample_scene(seed), render(sample_scene(seed), 64).surface) for seed in seeds]
    present = torch.stack([scene_labels(*scene)["objects"] for scene in scenes])
    return present, torch.tensor([main_pair(*scene) for scene in scenes])


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
