"""The Demo Scenes node: renders of the demo world with exact depth, as labelled training images."""

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..demo.ray_casting import render
from ..demo.scenes import FAR, NEAR, sample_scene
from ..depth_head.metrics import DepthRange
from .schema import search_aliases

# The demo model was not trained on scenes from this number on.
FIRST_UNSEEN = 1_000_000


class InnerDemoScenes(io.ComfyNode):
    """Renders scenes of the demo world by ray casting; no network is involved."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerDemoScenes",
            display_name="Demo Scenes",
            **search_aliases("scenes", "training images", "depth dataset"),
            category="image",
            description=(
                "Renders rooms like those that the demo model draws, with their exact depth. Use them to "
                "train depth heads and priors for the demo model, or as sample images."
            ),
            inputs=[
                io.Int.Input(
                    "first_seed",
                    default=FIRST_UNSEEN,
                    min=0,
                    max=2**31,
                    control_after_generate=False,
                    tooltip=(
                        "The number of the first scene; the others follow it. The same number always gives "
                        "the same scene. The demo model was trained on scenes 0 to 11999; it has not seen "
                        "higher numbers."
                    ),
                ),
                io.Int.Input(
                    "count",
                    default=32,
                    min=1,
                    max=4096,
                    tooltip=(
                        "The number of scenes. Higher values take longer, about 0.1 s per scene at 256 "
                        "pixels."
                    ),
                ),
                io.Int.Input(
                    "size",
                    default=256,
                    min=32,
                    max=2048,
                    step=8,
                    tooltip=(
                        "The side length of the square images, in pixels. Higher values are sharper and "
                        "take longer. The demo model was trained at 256."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The rendered images, one per scene."),
                io.Image.Output(
                    display_name="depths",
                    tooltip=(
                        "The depth maps of the scenes, near = white: relative inverse depth, where white is "
                        "1.5 m and black is 12 m from the camera."
                    ),
                ),
                io.String.Output(
                    display_name="main_objects",
                    tooltip=(
                        "The largest object of each scene, such as 'red sphere', one line per scene. Connect "
                        "it to class_names of Train Classifier Head."
                    ),
                ),
            ],
        )

    @classmethod
    def execute(cls, first_seed: int, count: int, size: int) -> io.NodeOutput:
        """Images and depth maps, (count, size, size, 3) each, and the names of the main objects."""
        progress = comfy.utils.ProgressBar(count)
        depth_range = DepthRange(NEAR, FAR)
        images, depths, main_objects = [], [], []
        for seed in range(first_seed, first_seed + count):
            comfy.model_management.throw_exception_if_processing_interrupted()
            scene = sample_scene(seed)
            seen = render(scene, size)
            images.append(seen.rgb.movedim(0, -1))
            depths.append(depth_range.relative(seen.depth)[..., None].expand(-1, -1, 3))
            main_objects.append(scene.phrases[0])
            progress.update(1)
        return io.NodeOutput(torch.stack(images), torch.stack(depths), "\n".join(main_objects))
