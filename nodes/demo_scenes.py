"""Renders of the demo world with their exact depth: labelled images for trying what trains on them."""

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..demo.world import FAR, NEAR, render, sample_scene
from ..depth_head.metrics import DepthRange

# Scenes from here on are new to the demo model.
FIRST_UNSEEN = 1_000_000


class InnerDemoScenes(io.ComfyNode):
    """Draws scenes of the demo world by ray casting, without any network."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Shared workflow files hold these inputs: what is added has a default, nothing is renamed."""
        return io.Schema(
            node_id="InnerDemoScenes",
            display_name="Demo Scenes",
            category="image",
            description=(
                "Rooms as the demo model draws them, but computed, and with their exact depth. For training "
                "depth heads and priors for the demo model, and as pictures to start from."
            ),
            inputs=[
                io.Int.Input(
                    "first_seed",
                    default=FIRST_UNSEEN,
                    min=0,
                    max=2**31,
                    control_after_generate=False,
                    tooltip="Number of the first scene; the others are the next ones. A number is a scene: "
                    "the demo model learned from 0 to 11999, higher ones are new to it.",
                ),
                io.Int.Input(
                    "count",
                    default=32,
                    min=1,
                    max=4096,
                    tooltip="How many scenes. Higher takes longer, a tenth of a second each at 256 pixels.",
                ),
                io.Int.Input(
                    "size",
                    default=256,
                    min=32,
                    max=2048,
                    step=8,
                    tooltip="Side of the square pictures in pixels. The demo model learned on 256; higher is "
                    "sharper and takes longer.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The pictures, one for each scene."),
                io.Image.Output(
                    display_name="depths",
                    tooltip="Their depth maps, near = white: relative inverse depth, white is 1.5 m and "
                    "black 12 m from the camera.",
                ),
            ],
        )

    @classmethod
    def execute(cls, first_seed: int, count: int, size: int) -> io.NodeOutput:
        """Pictures and depth maps."""
        progress = comfy.utils.ProgressBar(count)
        depth_range = DepthRange(NEAR, FAR)
        images, depths = [], []
        for seed in range(first_seed, first_seed + count):
            comfy.model_management.throw_exception_if_processing_interrupted()
            seen = render(sample_scene(seed), size)
            images.append(seen.rgb.movedim(0, -1))
            depths.append(depth_range.relative(seen.depth)[..., None].expand(-1, -1, 3))
            progress.update(1)
        return io.NodeOutput(torch.stack(images), torch.stack(depths))
