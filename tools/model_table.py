"""Writes docs/models.md: which node works with which model.

    make models

The rows of the transformers are those of host/taps/joint_models.py; tests/host/test_model_families.py fills
every cell with a run on a tiny model of the host's own class.
"""

from collections.abc import Iterable

from ..host.taps.joint_models import JOINT_MODELS
from .setup_host import ROOT

PAGE = ROOT / "docs" / "models.md"
YES = "yes"

# By JointModel.name: the models that belong to the family, as people know them.
KNOWN_AS = {
    "Stable Diffusion 3": "SD 3, SD 3.5 Medium, SD 3.5 Large",
    "Flux": "FLUX.1 dev, schnell, Fill, Kontext, Krea; FLUX.2 dev, Klein; LongCat-Image",
    "Chroma": "Chroma1, Chroma Radiance",
    "Qwen-Image": "Qwen-Image, Qwen-Image 2.1, Qwen-Image-Edit",
    "Mage-Flow": "Mage-Flow",
    "Lumina 2": "Lumina Image 2.0, Z-Image, Z-Image-Turbo, Z-Image in pixels",
    "Krea 2": "Krea 2",
    "Cosmos-Predict2": "Cosmos-Predict2, Anima",
    "Wan": "Wan 2.1, Wan 2.2, VACE, Fun; for images and videos",
    "HiDream": "HiDream-I1 (of HiDream-E1, nothing is read)",
    "Hunyuan Image": "HunyuanImage 2.1; HunyuanVideo, HunyuanVideo 1.5",
    "Ideogram 4": "Ideogram 4",
    "Ernie Image": "ERNIE-Image",
    "PixArt": "PixArt-alpha, PixArt-sigma",
    "Hunyuan-DiT": "Hunyuan-DiT 1.0 to 1.2",
    "AuraFlow": "AuraFlow, Pony V7",
    "Kandinsky 5": "Kandinsky 5 Image and Video",
    "OmniGen 2": "OmniGen2",
    "Boogu": "Boogu",
    "Lens": "Lens",
    "JoyImage": "JoyImage",
    "PixelDiT": "PixelDiT, PiD",
}

UNETS = {
    "UNet": ("SD 1.x, SD 2.x, SDXL and its fine-tunes: Pony, Illustrious, NoobAI", "UNetModel"),
}
# By name: why the words of a prompt have no maps.
NO_WORDS = {"Hunyuan-DiT": "no: its attention mixes two prompts"}

TEXT = """# Models

Made by `make models` from the tables in the code. Every cell of the first table is tested on a tiny model
with random weights of ComfyUI's own class, in
[test_model_families.py](../tests/host/test_model_families.py) and the tests of the nodes. No published
checkpoint was tried yet.

A model belongs to a family by its class in ComfyUI, so fine-tunes and distilled versions do, too. *SAG*
stands for Self-Attention Guidance and Record Attention; *words* for the maps of single words in Attention
Maps; *features* for Record Features and Feature Maps; *depth* for Train Depth Head, Depth Estimate and
the depth in Record Features; *DAG* for Depth-Aware Guidance.

| family | models | class | SAG | words | features | depth | DAG |
|---|---|---|---|---|---|---|---|
{rows}

Reference images (Kontext, FLUX.2, Qwen-Image-Edit, Krea 2, OmniGen2 and others) may be in the sequence:
the maps are those of the image that is sampled. HiDream-E1 has the image that it edits next to it in every
row of tokens: Self-Attention Guidance and the Record nodes say that they read nothing, and heads are refused.
Where another node adds tokens to the text (USO), words have no maps; where it adds images, nothing is read.

Videos of several frames: attention and features are recorded frame by frame, and Self-Attention Guidance
guides them; depth and classifier heads and the guidance by them read images, and refuse videos.

## What is refused

A node names the class of a model that it cannot use. Among the image models of ComfyUI 0.30.0 these are

| model | class | why |
|---|---|---|
{refused}

and models of video alone, sound and 3D.
"""
REFUSED = [
    (
        "HiDream-O1",
        "HiDreamO1Transformer",
        "its cache keeps the text out of the sequence after the first step",
    ),
    ("Stable Cascade", "StageC, StageB", "a UNet of another layout"),
    ("SCAIL", "SCAILWanModel", "other images stand before and behind the video in the sequence"),
    (
        "Wan for SamplerARVideo",
        "CausalWanModel",
        "every pass, an extra one too, adds to the cache of its keys",
    ),
    ("MiniMax H3", "MiniMaxH3Model", "image, video and sound are packed into one sequence"),
    ("SeedVR2", "NaDiT", "an upscaler that attends in windows"),
]


def page() -> str:
    """The text of docs/models.md."""
    rows = [(name, models, f"`{cls}`", YES, YES, YES, YES, YES) for name, (models, cls) in UNETS.items()] + [
        (
            joint.name,
            KNOWN_AS[joint.name],
            f"`{path.rsplit('.', 1)[1]}`",
            YES,
            NO_WORDS.get(joint.name, YES),
            YES,
            YES,
            YES,
        )
        for path, joint in JOINT_MODELS.items()
        if joint is not None
    ]
    refused = [(model, f"`{cls}`".replace(", ", "`, `"), why) for model, cls, why in REFUSED]
    return TEXT.format(rows=_lines(rows), refused=_lines(refused))


def _lines(rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE.relative_to(ROOT)}.")
