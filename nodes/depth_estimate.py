"""The Depth Estimate node."""

from typing import Any

import torch
from comfy_api.latest import io

from ..depth_head.rendering import NORMALISED, STYLES, as_picture, enlarge, enlarge_along_edges
from ..host.depth.estimation import encode_whole, estimate_depth, pixels_per_latent, require_readable
from ..host.recording.executing import wired_run
from ..host.recording.queries import depths_of
from ..host.recording.records import FeatureRecord
from ..pictures.images import images_of, require_finite, require_images
from .schema import DEPTH_HEAD, FEATURE_RECORD, UNCONNECTED, chosen_of, search_aliases

DEPTH = io.Custom("DEPTH")  # (B, H, W), relative inverse depth in [0, 1], near = 1
ENLARGED = SMOOTH, EDGES = ("smooth", "along edges")
NO_EDGES = f"enlarge is '{EDGES}', but no image is connected: connect one, or choose '{SMOOTH}'."


class InnerDepthEstimate(io.ComfyNode):
    """Reads the depth of images from the features of a diffusion model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerDepthEstimate",
            display_name="Depth Estimate",
            **search_aliases("depth map", "readout", "monocular depth", "depth preprocessor"),
            category="image/geometry estimation",
            description=(
                "Reads depth from inside a diffusion model, which evaluates the image with a little noise "
                "added. Connect a latent, or an image and its VAE. The picture is ready for a depth "
                "ControlNet. With a record from Record Features, shows the depth at each step while the "
                "image forms."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to read depth from."),
                DEPTH_HEAD.Input(
                    "depth_head",
                    tooltip=(
                        "The depth head. It must have been trained for this model family, or, if it is a "
                        "latent head, for this VAE: then it reads the latent as it is, the model is not "
                        "evaluated, and positive, noise_level, ensemble and seed have no effect."
                    ),
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip=(
                        "The latent to read depth from. Takes precedence over image if both are connected."
                    ),
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip=(
                        "The image to read depth from if no latent is connected; requires vae. Any size and "
                        "shape; best at a size that the model draws well."
                    ),
                ),
                io.Vae.Input("vae", optional=True, tooltip="The model's VAE, which encodes the image."),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip=(
                        "The prompt for the model: the same as in the training of the head, usually an "
                        "empty one. UNets (SD 1.x, 2.x, XL) can do without: leave unconnected to use zeros "
                        "instead."
                    ),
                ),
                io.Float.Input(
                    "noise_level",
                    default=0.1,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip=(
                        "How much noise is added to the image before the model evaluates it. Higher values "
                        "read the scene as a whole and lose detail; above 0.8 little can be read. 0.05 to "
                        "0.3 is usual."
                    ),
                ),
                io.Int.Input(
                    "ensemble",
                    default=4,
                    min=1,
                    max=256,
                    tooltip=(
                        "The number of noise samples to average over. Higher values are steadier and take "
                        "proportionally longer."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,
                    control_after_generate=False,
                    tooltip=(
                        "The seed for the noise. It makes little difference, and less with a higher ensemble."
                    ),
                ),
                io.Combo.Input(
                    "style",
                    options=list(STYLES),
                    default=NORMALISED,
                    optional=True,
                    tooltip=(
                        "normalised: stretch each image from black (farthest) to white (nearest), as "
                        "ControlNets expect. raw: the values as they were read. The others are colour maps, "
                        "from dark (far) to light (near)."
                    ),
                ),
                io.Combo.Input(
                    "enlarge",
                    options=list(ENLARGED),
                    default=SMOOTH,
                    optional=True,
                    tooltip=(
                        "How to enlarge the depth from the latent's size to the size of the image. smooth: "
                        "evenly. along edges: follow the edges of the image, which must be connected."
                    ),
                ),
                FEATURE_RECORD.Input(
                    "record",
                    optional=True,
                    tooltip=(
                        "The record output of Record Features, to show the depth at every recorded step, as "
                        "read by the depth head connected there. Requires the LATENT of the recorded "
                        "sampler. Takes precedence over latent and image; the model is not evaluated again, "
                        "so noise_level, ensemble and seed have no effect."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip=(
                        "The depth as a picture, near = white, at the size of the image. With a record: one "
                        "picture per step, in order, and for each step one per image of the batch."
                    ),
                ),
                io.Mask.Output(
                    display_name="mask", tooltip="The raw depth as a mask: 1 is nearest, 0 is farthest."
                ),
                DEPTH.Output(
                    display_name="depth",
                    tooltip=(
                        "The raw relative inverse depth, at the size of the latent: 1 is nearest, 0 is "
                        "farthest."
                    ),
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def validate_inputs(cls, enlarge: str | None = None, image: Any = UNCONNECTED) -> bool | str:
        """Whether there is an image for the edges, before anything is sampled."""
        if enlarge == EDGES and image is UNCONNECTED:
            return NO_EDGES
        return chosen_of(ENLARGED, "enlarge", enlarge)

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
        """IMAGE (N, H, W, 3), MASK (N, H, W), DEPTH (N, h, w). Raises ValueError if an input is missing."""
        if image is not None:
            require_images(image, "image")
            if latent is None or enlarge == EDGES:
                require_finite(image, "image")
        if enlarge == EDGES and image is None:
            raise ValueError(NO_EDGES)
        if record is not None:
            if latent is None:
                raise ValueError(
                    "Depth Estimate: to show a record, also connect the LATENT of its sampler to latent."
                )
            steps = depths_of(wired_run(record, cls.hidden, latent))
            depth = torch.cat(steps)
            if image is not None:
                image = images_of(image, len(steps[0]))
                if enlarge == EDGES:
                    image = image.repeat(len(steps), 1, 1, 1)
        else:
            require_readable(model, depth_head.head, positive)
            if latent is not None:
                latents = latent["samples"]
            elif image is not None and vae is not None:
                latents = encode_whole(model, vae, image)
            else:
                raise ValueError(
                    "Depth Estimate has nothing to read depth from: connect latent, or image and vae."
                )
            if enlarge == EDGES and image is not None:
                image = images_of(image, len(latents))
            depth = estimate_depth(model, depth_head, latents, noise_level, ensemble, seed, positive)
        large = cls.enlarged(depth, image, enlarge, pixels_per_latent(model))
        return io.NodeOutput(as_picture(large, style), large[:, 0], depth[:, 0])

    @classmethod
    def enlarged(cls, depth: torch.Tensor, image: torch.Tensor | None, how: str, ratio: int) -> torch.Tensor:
        """Depth (N, 1, H, W) at the size of the image, or at the size that the latent would decode to."""
        if image is None:
            return enlarge(depth, [ratio * side for side in depth.shape[-2:]])
        if how == EDGES:
            return enlarge_along_edges(depth, image.movedim(-1, 1))
        return enlarge(depth, image.shape[1:3])
