"""The Train Depth Head node."""

from typing import Any

from comfy_api.latest import io

from ..depth_head.architectures import ARCHITECTURES
from ..depth_head.metrics import DepthRange
from ..depth_head.training import TrainingSettings
from ..host.depth.head_training import AUTO, train_depth_head
from .schema import ADVANCED, DEPTH_HEAD


class InnerTrainDepthHead(io.ComfyNode):
    """Trains a depth head on labelled images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Shared workflow files hold these inputs: what is added has a default, nothing is renamed."""
        return io.Schema(
            node_id="InnerTrainDepthHead",
            display_name="Train Depth Head",
            category="model/training",
            description=(
                "Teaches a small network to read depth from inside a diffusion model, from images with depth "
                "maps. The model itself is not changed. Ten pairs work, a hundred work well. Interrupting "
                "keeps the best head so far."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to read. A head fits all models of its family."),
                io.Vae.Input("vae", tooltip="The model's VAE, which encodes the images."),
                io.Image.Input(
                    "images",
                    tooltip="A batch of images, of the kind that the head will see. More are better.",
                ),
                io.Image.Input(
                    "depths",
                    tooltip="A depth map for every image, in the same order, near = white: from Depth "
                    "Anything, MoGe, Lotus or a renderer. Any resolution.",
                ),
                io.Combo.Input(
                    "architecture",
                    options=list(ARCHITECTURES),
                    default="pixel_mlp",
                    tooltip="pixel_mlp judges every place by itself: small, quick, content with few images. "
                    "readout also looks around: larger and slower, better with many images.",
                ),
                io.String.Input(
                    "blocks",
                    default=AUTO,
                    tooltip="The blocks that are read. auto takes the middle of the decoder, for readout "
                    "all of it. o0, o1, ... are the decoder's blocks, deepest first, r0, r1, ... "
                    "the residual branches in them, which readout needs; ranges (o3-o8), several "
                    "with commas. Higher numbers see finer detail, lower ones more of the scene.",
                ),
                io.Int.Input(
                    "steps",
                    default=1000,
                    min=1,
                    max=100_000,
                    tooltip="Training steps, each one pass of the model. More fit the depth maps closer; "
                    "with few images the gain soon ends.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=1,
                    max=256,
                    tooltip="Images a step. Higher is steadier, slower, and needs more memory; 1 works.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.002,
                    min=0.000001,
                    max=1.0,
                    step=0.000001,
                    tooltip="How far a step goes. Higher learns faster; too high, and the loss jumps about.",
                    extra_dict=ADVANCED,
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,
                    control_after_generate=False,
                    tooltip="Decides the first weights, the order, the noise and which pairs are held out. "
                    "The same seed gives the same head.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="What the model is told while it is read, an empty prompt at best; the first "
                    "prompt counts, for whole images. Without one it is told zeros.",
                ),
                io.String.Input(
                    "weak_blocks",
                    default=AUTO,
                    optional=True,
                    tooltip="The blocks of the weak branch, which Depth-Aware Guidance compares with the "
                    "strong one. auto is the middle block of the decoder. More blocks make it less "
                    "weak.",
                    extra_dict=ADVANCED,
                ),
                io.Boolean.Input(
                    "align",
                    default=False,
                    optional=True,
                    tooltip="On: scale and shift of every depth map are free, in training and in the "
                    "figures. For maps that were stretched from black to white one by one.",
                    extra_dict=ADVANCED,
                ),
                io.Float.Input(
                    "near",
                    default=1.0,
                    min=0.01,
                    max=10_000.0,
                    step=0.01,
                    optional=True,
                    tooltip="Metres that white means in the depth maps. Higher moves everything away; only "
                    "the figures of the report depend on it.",
                    extra_dict=ADVANCED,
                ),
                io.Float.Input(
                    "far",
                    default=10.0,
                    min=0.02,
                    max=100_000.0,
                    step=0.01,
                    optional=True,
                    tooltip="Metres that black means in the depth maps. Higher counts errors in the "
                    "distance for more; only the figures of the report depend on it.",
                    extra_dict=ADVANCED,
                ),
            ],
            outputs=[
                DEPTH_HEAD.Output(
                    display_name="depth_head",
                    tooltip="The head, for Save Depth Head, Depth Estimate and Depth-Aware Guidance.",
                ),
                io.Image.Output(
                    display_name="report",
                    tooltip="The loss, how far off the head is at each noise level on held-out images, and "
                    "its estimates beside the depth maps.",
                ),
            ],
        )

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
        """Head and report. Raises ValueError, before anything long begins, for what cannot be trained on."""
        settings = TrainingSettings(steps, batch_size, learning_rate, seed, DepthRange(near, far), align)
        trained = train_depth_head(
            model, vae, images, depths, architecture, blocks, weak_blocks, settings, positive
        )
        return io.NodeOutput(trained.head, trained.report)
