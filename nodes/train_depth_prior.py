"""The Train Depth Prior node."""

import comfy.utils
import torch
from comfy_api.latest import io

from ..depth_head.prior import DEFAULT_SIZE, SIZES
from ..host.depth.priors import depth_maps, train
from ..host.depth.training_watch import TrainingWatch
from .schema import ADVANCED, DEPTH_PRIOR


class InnerTrainDepthPrior(io.ComfyNode):
    """Trains a depth prior on depth maps alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Shared workflow files hold these inputs: what is added has a default, nothing is renamed."""
        return io.Schema(
            node_id="InnerTrainDepthPrior",
            display_name="Train Depth Prior",
            category="model/training",
            description=(
                "Teaches a small diffusion network what depth maps look like, from a batch of them. "
                "Depth-Aware Guidance asks it whether the depth of the image that is forming is plausible. "
                "Interrupting keeps what it has learned so far."
            ),
            inputs=[
                io.Image.Input(
                    "depths",
                    tooltip="Depth maps, near = white, as Depth Anything nodes and depth ControlNets have "
                    "them. More of them, and more different ones, teach more; a hundred is a beginning.",
                ),
                io.Int.Input(
                    "steps",
                    default=5000,
                    min=1,
                    max=1_000_000,
                    tooltip="Training steps. Higher takes longer and learns more, up to a point that the "
                    "report shows: where its curve is flat.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=16,
                    min=1,
                    max=256,
                    tooltip="Depth maps a step. Higher is steadier, slower and needs more memory.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-3,
                    min=1e-6,
                    max=1.0,
                    step=1e-6,
                    tooltip="How far each step goes. Higher learns faster, too high does not learn at all.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Chooses the starting weights, the order of the maps and the noise.",
                ),
                io.Combo.Input(
                    "size",
                    options=[str(size) for size in SIZES],
                    default=str(DEFAULT_SIZE),
                    optional=True,
                    tooltip="Side of the square, in pixels, at which the prior sees depth maps. Higher sees "
                    "finer detail and takes about four times as long, in training and in every guided step. "
                    "A depth head reads an eighth of the image's size: 64 is all there is at 512 pixels.",
                    extra_dict=ADVANCED,
                ),
            ],
            outputs=[
                DEPTH_PRIOR.Output(
                    display_name="depth_prior",
                    tooltip="The depth prior, for Depth-Aware Guidance or Save Depth Prior.",
                ),
                io.Image.Output(
                    display_name="report",
                    tooltip="The loss over the steps, and depth maps that the prior makes up. A loss that is "
                    "still falling asks for more steps, and so do maps that do not look like yours.",
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
        """Train. Raises ValueError, before it, for depth maps that say nothing."""
        maps = depth_maps(depths)
        watch = TrainingWatch("Train Depth Prior", comfy.utils.ProgressBar(steps))
        prior, report = train(
            maps,
            int(size),
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            on_step=watch.on_step,
        )
        return io.NodeOutput(prior, report)
