"""The Demo Scenes node: renders of the demo world with exact depth, as labelled training images."""

from collections.abc import Iterator

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ..demo.labelled_scenes import labelled_scenes
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
        scenes = labelled_scenes(with_progress(range(first_seed, first_seed + count)), size)
        return io.NodeOutput(scenes.images, scenes.depths, "\n".join(scenes.main_objects))


def with_progress(seeds: range) -> Iterator[int]:
    """The seeds, with progress on the node. Raises the host's exception when the user has interrupted."""
    progress = comfy.utils.ProgressBar(len(seeds))
    for seed in seeds:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield seed
        progress.update(1)
