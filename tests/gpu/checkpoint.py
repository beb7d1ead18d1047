"""Prompts that draw on a checkpoint without and with each guidance, and judge the depth of the pictures."""

from typing import Any, NamedTuple

from inner_guidance.tools.full_size import TRAIN_HEAD
from inner_guidance.tools.host_server import Prompt
from inner_guidance.tools.template_runs import shortened, template

TEXTS = (
    "a lighthouse on a cliff above a stormy sea, oil painting",
    "a narrow street in an old town, cobblestones, evening light, photograph",
    "a ruined temple in the jungle, moss, sunbeams, matte painting",
    "portrait of an old fisherman mending a net in a harbour, photograph",
    "a living room with a red armchair and a wooden table, photograph",
    "a stack of books and an apple on a table by a window, still life",
    "a dog running on a beach towards the camera, photograph",
    "a mountain lake with a wooden pier, morning mist, photograph",
)
PLAIN, SAG, DAG, LOCKED, BOTH = "without", "SAG", "DAG", "depth of the first picture", "DAG and SAG"


class Subject(NamedTuple):
    """What is drawn on: file names, pixels of a side, sampling steps. depth_model: or nothing."""

    checkpoint: str
    depth_model: str
    side: int
    steps: int

    @property
    def rows(self) -> tuple[str, ...]:
        """What is drawn for each seed."""
        return (PLAIN, SAG, DAG, LOCKED, BOTH) if self.depth_model else (PLAIN, SAG)


def training(subject: Subject, steps: int) -> Prompt:
    """The template that trains a head, on the pictures in input/depth_training."""
    return shortened(
        template(TRAIN_HEAD),
        {
            "CheckpointLoaderSimple": {"ckpt_name": subject.checkpoint},
            "LoadDA3Model": {"model_name": subject.depth_model},
            "ImageScale": {"width": subject.side, "height": subject.side},
            "InnerTrainDepthHead": {"steps": steps},
        },
    )


def drawing(subject: Subject, row: str, seed: int, head: str = "", target: str = "") -> Prompt:
    """One picture ("picture") and, with a depth model, its depth by that ("depth") and by the head ("read").

    target: of LOCKED, a depth map in the input folder.
    """
    prompt: Prompt = {}

    def node(node_id: str, kind: str, /, **inputs: Any) -> list[Any]:
        prompt[node_id] = {"class_type": kind, "inputs": inputs}
        return [node_id, 0]

    model = node("checkpoint", "CheckpointLoaderSimple", ckpt_name=subject.checkpoint)
    clip, vae = ["checkpoint", 1], ["checkpoint", 2]
    text = TEXTS[seed % len(TEXTS)]
    positive = node("positive", "CLIPTextEncode", clip=clip, text=text)
    negative = node("negative", "CLIPTextEncode", clip=clip, text="blurry, text")
    patched = model
    if row in (SAG, BOTH):
        patched = node("sag", "InnerSelfAttentionGuidance", model=patched)
    if row in (DAG, LOCKED, BOTH):
        depth_head = node("head", "InnerLoadDepthHead", name=head)
        guidance: dict[str, Any] = {"model": patched, "depth_head": depth_head}
        if row == LOCKED:
            guidance["target_depth"] = node("target", "LoadImage", image=target)
            guidance["consistency_scale"] = 0.0
        patched = node("dag", "InnerDepthAwareGuidance", **guidance)
    latent = node("empty", "EmptyLatentImage", width=subject.side, height=subject.side, batch_size=1)
    sampled = node(
        "sampler",
        "KSampler",
        model=patched,
        positive=positive,
        negative=negative,
        latent_image=latent,
        seed=seed,
        steps=subject.steps,
        cfg=7.0,
        sampler_name="dpmpp_2m",
        scheduler="karras",
        denoise=1.0,
    )
    picture = node("decoded", "VAEDecode", samples=sampled, vae=vae)
    node("picture", "PreviewImage", images=picture)
    if subject.depth_model:
        depth_anything = node("da3", "LoadDA3Model", model_name=subject.depth_model, weight_dtype="default")
        geometry = node(
            "geometry",
            "DA3Inference",
            da3_model=depth_anything,
            image=picture,
            resolution=504,
            resize_method="upper_bound_resize",
            mode="mono",
        )
        rendered = {"output": "depth", "output.normalization": "v2_style", "output.apply_sky_clip": False}
        node("depth", "PreviewImage", images=node("rendered", "DA3Render", da3_geometry=geometry, **rendered))
    if head:
        depth_head = node("head", "InnerLoadDepthHead", name=head)
        read = node("estimate", "InnerDepthEstimate", model=model, depth_head=depth_head, latent=sampled)
        node("read", "PreviewImage", images=read)
    return prompt
