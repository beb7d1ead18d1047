"""The Depth Estimate node."""

from typing import Any

import torch
from comfy_api.latest import io

from ..depth_head.rendering import NORMALISED, STYLES, as_picture, enlarge, enlarge_along_edges
from ..host.depth.estimation import encode_whole, estimate_depth, pixels_per_latent
from ..host.recording.executing import wired_run
from ..host.recording.queries import depths_of
from ..host.recording.records import FeatureRecord
from ..pictures.attention_maps import images_of
from .schema import DEPTH_HEAD, FEATURE_RECORD

DEPTH = io.Custom("DEPTH")  # (B, H, W), relative inverse depth in [0, 1], near = 1
SMOOTH, EDGES = "smooth", "along edges"


class InnerDepthEstimate(io.ComfyNode):
    """Reads the depth of images from inside a diffusion model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Shared workflow files hold these inputs: what is added has a default, nothing is renamed."""
        return io.Schema(
            node_id="InnerDepthEstimate",
            display_name="Depth Estimate",
            category="image/geometry estimation",
            description=(
                "Reads how far things are from inside a diffusion model, which looks at the image once, with "
                "a little noise. Connect a latent, or an image and the VAE. The picture is ready for a depth "
                "ControlNet. With a record of Record Features: the depth at each step, while the image forms."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that looks at the image."),
                DEPTH_HEAD.Input(
                    "depth_head", tooltip="The head that reads the depth, made for this model's family."
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="What to look at. Counts before image where both are given.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="What to look at instead of a latent; needs vae. Any size and shape; best at "
                    "the size that the model draws well.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="The model's VAE, which encodes the image."),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="What the model is told meanwhile: the same that it was told when the head was "
                    "trained, an empty prompt as a rule. Without one it is told zeros.",
                ),
                io.Float.Input(
                    "noise_level",
                    default=0.1,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip="How much noise the model sees the image through. Higher reads the scene as a "
                    "whole and forgets detail; above 0.8 little can be read. 0.05 to 0.3 is usual.",
                ),
                io.Int.Input(
                    "ensemble",
                    default=4,
                    min=1,
                    max=256,
                    tooltip="How many noises are looked through and averaged. Higher is steadier and takes "
                    "as many times longer.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,
                    control_after_generate=False,
                    tooltip="Which noises. It matters little, and less with a higher ensemble.",
                ),
                io.Combo.Input(
                    "style",
                    options=list(STYLES),
                    default=NORMALISED,
                    optional=True,
                    tooltip="The picture: each image stretched from black (farthest) to white (nearest), "
                    "which ControlNets expect; raw, as it was read; or in colours, from dark (far) "
                    "to light (near).",
                ),
                io.Combo.Input(
                    "enlarge",
                    options=[SMOOTH, EDGES],
                    default=SMOOTH,
                    optional=True,
                    tooltip="How the depth, read at the latent's size, is brought to the image's: smooth, or "
                    "along edges of the image, which must be connected for that.",
                ),
                FEATURE_RECORD.Input(
                    "record",
                    optional=True,
                    tooltip="What Record Features wrote down, to show the depth of every recorded step as "
                    "the head connected there read it. Needs latent: that of the sampler, whose run it is. "
                    "Counts before latent and image; the model does not look again, so noise_level, ensemble "
                    "and seed do nothing.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The depth as a picture, near = white, at the image's size. Of a record: one a "
                    "step, in this order, and of each step one for every image of the batch.",
                ),
                io.Mask.Output(
                    display_name="mask", tooltip="The depth as a mask, raw: 1 is nearest, 0 farthest."
                ),
                DEPTH.Output(
                    display_name="depth",
                    tooltip="Relative inverse depth, raw, at the latent's size: 1 is nearest, 0 farthest.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        depth_head: Any,
        noise_level: float,
        ensemble: int,
        seed: int,
        latent: dict[str, Any] | None = None,
        image: torch.Tensor | None = None,
        vae: Any = None,
        positive: Any = None,
        style: str = NORMALISED,
        enlarge: str = SMOOTH,
        record: FeatureRecord | None = None,
    ) -> io.NodeOutput:
        """Picture, mask and depth. Raises ValueError where nothing to look at is connected."""
        if record is not None and latent is None:
            raise ValueError("Depth Estimate: to show a record, connect the LATENT of its sampler as well.")
        if latent is None and (image is None or vae is None):
            raise ValueError(
                "Depth Estimate needs something to look at: connect a latent, or an image and a vae."
            )
        if enlarge == EDGES and image is None:
            raise ValueError(
                f"enlarge is '{EDGES}', but no image is connected: connect it, or choose '{SMOOTH}'."
            )
        if record is not None:
            steps = depths_of(wired_run(record, cls.hidden))
            depth = torch.cat(steps)
            if image is not None:
                image = images_of(image, len(steps[0])).repeat(len(steps), 1, 1, 1)
        else:
            latents = latent["samples"] if latent is not None else encode_whole(vae, image)
            depth = estimate_depth(model, depth_head, latents, noise_level, ensemble, seed, positive)
        large = cls.enlarged(depth, image, enlarge, pixels_per_latent(model))
        return io.NodeOutput(as_picture(large, style), large[:, 0], depth[:, 0])

    @classmethod
    def enlarged(cls, depth: torch.Tensor, image: torch.Tensor | None, how: str, ratio: int) -> torch.Tensor:
        """Depth at the size of the image, or of what the latent would be decoded to."""
        if image is None:
            return enlarge(depth, [ratio * side for side in depth.shape[-2:]])
        if how == EDGES:
            return enlarge_along_edges(depth, image[..., :3].movedim(-1, 1))
        return enlarge(depth, image.shape[1:3])
