"""The Train Depth Head node."""

from typing import Any

from comfy_api.latest import io

from ..depth_head.architectures import ARCHITECTURES
from ..depth_head.metrics import DepthRange
from ..depth_head.training import TrainingSettings
from ..host.depth.head_training import AUTO, train_depth_head
from .schema import ADVANCED, DEPTH_HEAD, search_aliases


class InnerTrainDepthHead(io.ComfyNode):
    """Trains a depth head on labelled images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerTrainDepthHead",
            display_name="Train Depth Head",
            **search_aliases("readout", "readout head", "depth estimator", "train depth map"),
            category="model/training",
            description=(
                "Trains a small network to read depth from a diffusion model's features, or from its "
                "latents, using images with depth maps. The model itself is not changed. For features, "
                "use 50 to 100 pairs; ten are not enough. For latents, use a thousand. Interrupting keeps "
                "the best head so far."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "The model to read depth from. The head works with every model of its family; a "
                        "latent head works with every model that uses the same VAE, and the model is not "
                        "evaluated."
                    ),
                ),
                io.Vae.Input("vae", tooltip="The model's VAE, which encodes the images."),
                io.Image.Input(
                    "images",
                    tooltip=(
                        "A batch of images like those that the head will be used on. More images give a "
                        "better head."
                    ),
                ),
                io.Image.Input(
                    "depths",
                    tooltip=(
                        "One depth map for each image, in the same order, near = white: from Depth "
                        "Anything, MoGe, Lotus or a renderer. Any resolution, but the aspect ratio of the "
                        "images."
                    ),
                ),
                io.Combo.Input(
                    "architecture",
                    options=list(ARCHITECTURES),
                    default="pixel_mlp",
                    tooltip=(
                        "pixel_mlp reads each place by itself: small, fast, works with few images. readout "
                        "also takes the surroundings into account: larger and slower, better with many "
                        "images; UNets only (SD 1.x, 2.x, XL). latent reads the finished latent, not the "
                        "model's features: guidance towards a target costs next to nothing and works with "
                        "every model of the same VAE, but training needs many images and consistency is not "
                        "available."
                    ),
                ),
                io.String.Input(
                    "blocks",
                    default=AUTO,
                    tooltip=(
                        "The blocks to read. auto uses the middle of the decoder, or all of it for readout. "
                        "o0, o1, ... are the blocks of the decoder, deepest first; r0, r1, ... are their "
                        "residual branches, which readout requires. Models without a decoder, such as Flux, "
                        "have b0, b1, ...; there auto uses blocks up to half depth. o3-o8 is a range; "
                        "separate several with commas. Higher numbers see finer detail, lower ones more of "
                        "the scene. No effect on latent."
                    ),
                ),
                io.Int.Input(
                    "steps",
                    default=1000,
                    min=1,
                    max=100_000,
                    tooltip=(
                        "The number of training steps, each of which is one pass of the model, or of the "
                        "head alone for latent, which needs more of them: 3000 with batch_size 16. Higher "
                        "values fit the depth maps more closely; with few images, more steps soon stop "
                        "helping."
                    ),
                ),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=1,
                    max=256,
                    tooltip=(
                        "Images per step. Higher values are steadier, but slower and need more memory; 1 "
                        "works."
                    ),
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.002,
                    min=0.000001,
                    max=1.0,
                    step=0.000001,
                    tooltip=(
                        "How far each step goes. Higher values learn faster; if the value is too high, the "
                        "loss jumps."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,
                    control_after_generate=False,
                    tooltip=(
                        "The seed for the initial weights, the order of the images, the noise and the "
                        "choice of held-out pairs. The same seed gives the same head."
                    ),
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip=(
                        "The prompt for the model during training, ideally an empty one. If there are "
                        "several, the first is used for the whole image. UNets (SD 1.x, 2.x, XL) can do "
                        "without: leave unconnected to use zeros instead. No effect on latent."
                    ),
                ),
                io.String.Input(
                    "weak_blocks",
                    default=AUTO,
                    optional=True,
                    tooltip=(
                        "The blocks of the weak branch, which Depth-Aware Guidance compares with the strong "
                        "one. auto uses the middle block of the decoder, or of those that blocks uses on "
                        "auto. More blocks make the branch less weak. No effect on latent."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Boolean.Input(
                    "align",
                    default=False,
                    optional=True,
                    tooltip=(
                        "On: ignore scale and shift of each depth map, in training and in the report. For "
                        "depth maps that were each stretched from black to white."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Float.Input(
                    "near",
                    default=1.0,
                    min=0.01,
                    max=10_000.0,
                    step=0.01,
                    optional=True,
                    tooltip=(
                        "The distance in metres that white stands for in the depth maps. Higher values move "
                        "everything away. Affects only the figures in the report."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Float.Input(
                    "far",
                    default=10.0,
                    min=0.02,
                    max=100_000.0,
                    step=0.01,
                    optional=True,
                    tooltip=(
                        "The distance in metres that black stands for in the depth maps. Higher values give "
                        "errors in the distance more weight. Affects only the figures in the report."
                    ),
                    extra_dict=ADVANCED,
                ),
            ],
            outputs=[
                DEPTH_HEAD.Output(
                    display_name="depth_head",
                    tooltip=(
                        "The trained head. Connect it to Save Depth Head, Depth Estimate, Record Features "
                        "or Depth-Aware Guidance."
                    ),
                ),
                io.Image.Output(
                    display_name="report",
                    tooltip=(
                        "The loss, the error at each noise level on held-out images, and the head's "
                        "estimates next to the depth maps."
                    ),
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, near: float | None = 1.0, far: float | None = 10.0) -> bool | str:
        """Whether near is below far, before depth maps are made. None: the output of another node."""
        if near is not None and far is not None:
            try:
                DepthRange(near, far)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        images: Any,
        depths: Any,
        architecture: str,
        blocks: str,
        steps: int,
        batch_size: int,
        learning_rate: float,
        seed: int,
        positive: Any = None,
        weak_blocks: str = AUTO,
        align: bool = False,
        near: float = 1.0,
        far: float = 10.0,
    ) -> io.NodeOutput:
        """Head and report. Raises ValueError before training if the inputs do not match or cannot be used."""
        settings = TrainingSettings(steps, batch_size, learning_rate, seed, DepthRange(near, far), align)
        trained = train_depth_head(
            model, vae, images, depths, architecture, blocks, weak_blocks, settings, positive
        )
        return io.NodeOutput(trained.head, trained.report)
