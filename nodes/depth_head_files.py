"""Load Depth Head and Save Depth Head: files in models/depth_heads."""

from comfy_api.latest import io

from ..depth_head.files import fingerprint
from ..depth_head.head_files import READOUT_SUFFIX, SUFFIX, load_depth_head, save_depth_head
from ..host.depth.heads import HostedDepthHead
from ..host.depth.model_folders import file_path, new_file, register_model_folder
from .model_files import file_input, prefix_input, savable, saved_as
from .schema import DEPTH_HEAD, search_aliases

FOLDER = "depth_heads"

register_model_folder(FOLDER, (SUFFIX, READOUT_SUFFIX))


class InnerLoadDepthHead(io.ComfyNode):
    """Loads a depth head: one that this pack trained, or a public Readout head."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerLoadDepthHead",
            display_name="Load Depth Head (Readout)",
            **search_aliases("readout", "readout head", "depth estimator"),
            category="model/loaders",
            description=(
                "Loads a depth head: a small network that reads depth from a diffusion model's features, or "
                "from its latents. Put files from Save Depth Head, or the public Readout heads (.pt), into "
                "models/depth_heads."
            ),
            inputs=[
                file_input(
                    FOLDER,
                    "A head works only with the model family it was trained on; a latent head works with "
                    "every model that uses the same VAE.",
                )
            ],
            outputs=[
                DEPTH_HEAD.Output(
                    display_name="depth_head",
                    tooltip="The depth head. Connect it to Depth Estimate, Record Features, Depth-Aware "
                    "Guidance or Save Depth Head.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        """A hash of the file, so that the node runs again after the file is replaced."""
        return fingerprint(file_path(FOLDER, name))

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        """The depth head. Raises ValueError if the file is missing, damaged or not a depth head."""
        return io.NodeOutput(HostedDepthHead.of(load_depth_head(file_path(FOLDER, name))))


class InnerSaveDepthHead(io.ComfyNode):
    """Writes a depth head to models/depth_heads."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerSaveDepthHead",
            display_name="Save Depth Head",
            **search_aliases("readout", "readout head", "depth estimator"),
            category="model/training",
            description=(
                "Saves a depth head as a safetensors file in models/depth_heads, where Load Depth Head finds "
                "it. Also converts a Readout head loaded from a .pt file to safetensors."
            ),
            inputs=[
                DEPTH_HEAD.Input("depth_head", tooltip="The depth head to save."),
                prefix_input("depth_head"),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Whether a file can be written under this prefix."""
        return savable(FOLDER, filename_prefix)

    @classmethod
    def execute(cls, depth_head: HostedDepthHead, filename_prefix: str) -> io.NodeOutput:
        """Write the file. Raises ValueError if it cannot be written under this prefix."""
        with new_file(FOLDER, filename_prefix, SUFFIX) as path:
            save_depth_head(path, depth_head.head)
        return saved_as(path)
