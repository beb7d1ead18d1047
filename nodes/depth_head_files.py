"""Load Depth Head and Save Depth Head: files in models/depth_heads."""

import folder_paths
from comfy_api.latest import io, ui

from ..depth_head.files import fingerprint
from ..depth_head.head_files import READOUT_SUFFIX, SUFFIX, load_depth_head, save_depth_head
from ..host.depth.heads import HostedDepthHead
from ..host.depth.model_folders import file_path, new_file_path, register_model_folder
from .schema import DEPTH_HEAD

FOLDER = "depth_heads"

register_model_folder(FOLDER, (SUFFIX, READOUT_SUFFIX))


class InnerLoadDepthHead(io.ComfyNode):
    """Loads a depth head, one of ours or a public Readout head."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """One name out of the list of files."""
        return io.Schema(
            node_id="InnerLoadDepthHead",
            display_name="Load Depth Head",
            category="model/loaders",
            description=(
                "Loads a depth head: a small network that reads depth from a diffusion model's features. Put "
                "files of Save Depth Head, or the public Readout heads (.pt), into models/depth_heads."
            ),
            inputs=[
                io.Combo.Input(
                    "name",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="The file in models/depth_heads. A head fits the model family it was made for.",
                )
            ],
            outputs=[
                DEPTH_HEAD.Output(
                    display_name="depth_head",
                    tooltip="The depth head, for Depth Estimate, Depth-Aware Guidance or Save Depth Head.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        """A hash of the file: the node runs again when it was replaced."""
        return fingerprint(file_path(FOLDER, name))

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        """The head. Raises ValueError, in one sentence, for a file that is none."""
        return io.NodeOutput(HostedDepthHead.of(load_depth_head(file_path(FOLDER, name))))


class InnerSaveDepthHead(io.ComfyNode):
    """Writes a depth head to models/depth_heads."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """As the host's savers: a prefix, and a number that it counts up."""
        return io.Schema(
            node_id="InnerSaveDepthHead",
            display_name="Save Depth Head",
            category="model/training",
            description=(
                "Saves a depth head as a safetensors file in models/depth_heads, where Load Depth Head finds "
                "it. A Readout head that was loaded from a .pt file becomes a safe file this way."
            ),
            inputs=[
                DEPTH_HEAD.Input("depth_head", tooltip="The depth head to save."),
                io.String.Input(
                    "filename_prefix",
                    default="depth_head",
                    tooltip="How the file's name begins; a number is counted up behind it, so nothing is "
                    "overwritten. A folder in front of it (rooms/depth_head) is made where needed.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, depth_head: HostedDepthHead, filename_prefix: str) -> io.NodeOutput:
        """Write the file and say its name on the node. Raises ValueError for a prefix outside the folder."""
        path = new_file_path(FOLDER, filename_prefix, SUFFIX)
        save_depth_head(path, depth_head.head)
        return io.NodeOutput(ui=ui.PreviewText(f"Saved as {path.name}"))
