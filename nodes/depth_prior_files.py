"""Load Depth Prior and Save Depth Prior: files in models/depth_priors."""

from comfy_api.latest import io

from ..depth_head.files import fingerprint
from ..depth_head.prior import DepthPrior
from ..depth_head.prior_files import SUFFIX, load_depth_prior, save_depth_prior
from ..host.depth.model_folders import file_path, new_file, register_model_folder
from ..host.depth.priors import make_unet
from .model_files import file_input, prefix_input, savable, saved_as
from .schema import DEPTH_PRIOR, search_aliases

FOLDER = "depth_priors"

register_model_folder(FOLDER, (SUFFIX,))


class InnerLoadDepthPrior(io.ComfyNode):
    """Loads a depth prior."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerLoadDepthPrior",
            display_name="Load Depth Prior",
            **search_aliases("depth diffusion", "DAG prior"),
            category="model/loaders",
            description=(
                "Loads a depth prior: a small network that knows what depth maps look like. Put files from "
                "Save Depth Prior into models/depth_priors."
            ),
            inputs=[file_input(FOLDER, "A prior works with every model and every depth head.")],
            outputs=[
                DEPTH_PRIOR.Output(
                    display_name="depth_prior",
                    tooltip="The depth prior. Connect it to Depth-Aware Guidance or Save Depth Prior.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        """A hash of the file, so that the node runs again after the file is replaced."""
        return fingerprint(file_path(FOLDER, name))

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        """The depth prior. Raises ValueError if the file is missing, damaged or not a depth prior."""
        return io.NodeOutput(load_depth_prior(file_path(FOLDER, name), make_unet))


class InnerSaveDepthPrior(io.ComfyNode):
    """Writes a depth prior to models/depth_priors."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerSaveDepthPrior",
            display_name="Save Depth Prior",
            **search_aliases("depth diffusion", "DAG prior"),
            category="model/training",
            description=(
                "Saves a depth prior as a safetensors file in models/depth_priors, where Load Depth Prior "
                "finds it."
            ),
            inputs=[
                DEPTH_PRIOR.Input("depth_prior", tooltip="The depth prior to save."),
                prefix_input("depth_prior"),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Whether a file can be written under this prefix."""
        return savable(FOLDER, filename_prefix)

    @classmethod
    def execute(cls, depth_prior: DepthPrior, filename_prefix: str) -> io.NodeOutput:
        """Write the file. Raises ValueError if it cannot be written under this prefix."""
        with new_file(FOLDER, filename_prefix, SUFFIX) as path:
            save_depth_prior(path, depth_prior)
        return saved_as(path)
