"""The Train Depth Prior node."""

import comfy.utils
import torch
from comfy_api.latest import io

from ..depth_head.depth_maps import read_depth_maps
from ..depth_head.prior import DEFAULT_SIZE, SIZES
from ..depth_head.prior_report import LOSS
from ..host.depth.priors import train_depth_prior
from ..host.depth.training_watch import TrainingWatch
from ..pictures.images import FROM_A_LIST
from .schema import ADVANCED, DEPTH_PRIOR, search_aliases


class InnerTrainDepthPrior(io.ComfyNode):
    """Trains a depth prior on depth maps; needs no images and no model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerTrainDepthPrior",
            display_name="Train Depth Prior",
            **search_aliases("depth diffusion", "DAG prior"),
            category="model/training",
            description=(
                "Trains a small diffusion network to learn what depth maps look like. Depth-Aware Guidance "
                "uses it to judge whether the depth of the forming image is plausible. Interrupting keeps "
                "what it has learned so far."
            ),
            inputs=[
                io.Image.Input(
                    "depths",
                    tooltip=(
                        "Depth maps, near = white, as from Depth Anything or for depth ControlNets. More "
                        "maps, and more varied ones, teach more; start with about a hundred."
                    ),
                ),
                io.Int.Input(
                    "steps",
                    default=5000,
                    min=1,
                    max=1_000_000,
                    tooltip=(
                        "The number of training steps. Higher values take longer and learn more, until the "
                        "curve in the report is flat."
                    ),
                ),
                io.Int.Input(
                    "batch_size",
                    default=16,
                    min=1,
                    max=256,
                    tooltip=(
                        "Depth maps per step. Higher values are steadier, but slower and need more memory."
                    ),
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-3,
                    min=1e-6,
                    max=1.0,
                    step=1e-6,
                    tooltip=(
                        "How far each step goes. Higher values learn faster; if the value is too high, "
                        "nothing is learned."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    tooltip=(
                        "The seed for the initial weights, the order of the maps and the noise. Any "
                        "number; the same gives the same prior."
                    ),
                    extra_dict={"control_after_generate": "fixed"},  # ComfyUI 0.9.2 has no enum for it
                ),
                io.Combo.Input(
                    "size",
                    options=[str(size) for size in SIZES],
                    default=str(DEFAULT_SIZE),
                    optional=True,
                    tooltip=(
                        "The side length, in pixels, of the square at which the prior sees depth maps. Each "
                        "higher value sees finer detail and takes about four times as long, in training and "
                        "in every guided step. A depth head reads at an eighth of the image's size, so 64 "
                        "is enough for images of 512 pixels."
                    ),
                    extra_dict=ADVANCED,
                ),
            ],
            outputs=[
                DEPTH_PRIOR.Output(
                    display_name="depth_prior",
                    tooltip="The trained prior. Connect it to Depth-Aware Guidance or Save Depth Prior.",
                ),
                io.Image.Output(
                    display_name="report",
                    tooltip=(
                        "The loss over the steps, and depth maps that the prior generates. If the loss is "
                        "still falling, or the maps do not look like yours, train for more steps."
                    ),
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        depths: torch.Tensor,
        steps: int,
        batch_size: int,
        learning_rate: float,
        seed: int,
        size: str = str(DEFAULT_SIZE),
    ) -> io.NodeOutput:
        """Prior and report. Raises ValueError before training for one, uniform or non-finite depth maps."""
        maps = read_depth_maps(depths, "depths")
        if len(maps) < 2:
            raise ValueError(
                "depths is a single map, and a prior learns from many: connect about a hundred. "
                + FROM_A_LIST
            )
        watch = TrainingWatch(LOSS, comfy.utils.ProgressBar(steps))
        prior, report = train_depth_prior(
            maps,
            int(size),
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            on_step=watch.on_step,
        )
        return io.NodeOutput(prior, report)
