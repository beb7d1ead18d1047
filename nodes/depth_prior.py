"""Train, Save and Load Depth Prior: files in models/depth_priors."""

import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io, ui

from ..depth_head.files import fingerprint
from ..depth_head.prior import DEFAULT_SIZE, SIZES, DepthPrior
from ..depth_head.prior_files import SUFFIX, load_depth_prior, save_depth_prior
from ..host.depth.model_folders import file_path, new_file_path, register_model_folder
from ..host.depth.priors import depth_maps, make_unet, train
from ..host.depth.training_watch import TrainingWatch
from .schema import ADVANCED, DEPTH_PRIOR

FOLDER = "depth_priors"

register_model_folder(FOLDER, (SUFFIX,))


class InnerLoadDepthPrior(io.ComfyNode):
    """Loads a depth prior."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """One name out of the list of files."""
        return io.Schema(
            node_id="InnerLoadDepthPrior",
            display_name="Load Depth Prior",
            category="model/loaders",
            description=(
                "Loads a depth prior: a small network that knows what depth maps look like. Put files of "
                "Save Depth Prior into models/depth_priors."
            ),
            inputs=[
                io.Combo.Input(
                    "name",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="The file in models/depth_priors. A prior fits every model and every depth head.",
                )
            ],
            outputs=[
                DEPTH_PRIOR.Output(
                    display_name="depth_prior",
                    tooltip="The depth prior, for Depth-Aware Guidance or Save Depth Prior.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        """A hash of the file: the node runs again when it was replaced."""
        return fingerprint(file_path(FOLDER, name))

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        """The prior. Raises ValueError, in one sentence, for a file that is none."""
        return io.NodeOutput(load_depth_prior(file_path(FOLDER, name), make_unet))


class InnerSaveDepthPrior(io.ComfyNode):
    """Writes a depth prior to models/depth_priors."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """As the host's savers: a prefix, and a number that it counts up."""
        return io.Schema(
            node_id="InnerSaveDepthPrior",
            display_name="Save Depth Prior",
            category="model/training",
            description=(
                "Saves a depth prior as a safetensors file in models/depth_priors, where Load Depth Prior "
                "finds it."
            ),
            inputs=[
                DEPTH_PRIOR.Input("depth_prior", tooltip="The depth prior to save."),
                io.String.Input(
                    "filename_prefix",
                    default="depth_prior",
                    tooltip="How the file's name begins; a number is counted up behind it, so nothing is "
                    "overwritten. A folder in front of it (rooms/depth_prior) is made where needed.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, depth_prior: DepthPrior, filename_prefix: str) -> io.NodeOutput:
        """Write the file and say its name on the node. Raises ValueError for a prefix outside the folder."""
        path = new_file_path(FOLDER, filename_prefix, SUFFIX)
        save_depth_prior(path, depth_prior)
        return io.NodeOutput(ui=ui.PreviewText(f"Saved as {path.name}"))


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
