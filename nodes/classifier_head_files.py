"""Load Classifier Head and Save Classifier Head: files in models/classifier_heads."""

from comfy_api.latest import io

from ..classifier_head.head_files import SUFFIX, load_classifier_head, save_classifier_head
from ..depth_head.files import fingerprint
from ..host.classifier.heads import HostedClassifierHead
from ..host.depth.model_folders import file_path, new_file, register_model_folder
from .model_files import file_input, prefix_input, savable, saved_as
from .schema import CLASSIFIER_HEAD, search_aliases

FOLDER = "classifier_heads"

register_model_folder(FOLDER, (SUFFIX,))


class InnerLoadClassifierHead(io.ComfyNode):
    """Loads a classifier head that this pack trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerLoadClassifierHead",
            display_name="Load Classifier Head",
            **search_aliases("classifier", "linear probe"),
            category="model/loaders",
            description=(
                "Loads a classifier head: a small network that classifies a noisy image from a diffusion "
                "model's features. Put files from Save Classifier Head into models/classifier_heads."
            ),
            inputs=[file_input(FOLDER, "A head works only with the model family it was trained on.")],
            outputs=[
                CLASSIFIER_HEAD.Output(
                    display_name="classifier_head",
                    tooltip="The classifier head. Connect it to Classifier Guidance or Save Classifier Head.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        """A hash of the file, so that the node runs again after the file is replaced."""
        return fingerprint(file_path(FOLDER, name))

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        """The classifier head. Raises ValueError if the file is missing, damaged or something else."""
        return io.NodeOutput(HostedClassifierHead.of(load_classifier_head(file_path(FOLDER, name))))


class InnerSaveClassifierHead(io.ComfyNode):
    """Writes a classifier head to models/classifier_heads."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerSaveClassifierHead",
            display_name="Save Classifier Head",
            **search_aliases("classifier", "linear probe"),
            category="model/training",
            description=(
                "Saves a classifier head as a safetensors file in models/classifier_heads, where Load "
                "Classifier Head finds it."
            ),
            inputs=[
                CLASSIFIER_HEAD.Input("classifier_head", tooltip="The classifier head to save."),
                prefix_input("classifier_head"),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Whether a file can be written under this prefix."""
        return savable(FOLDER, filename_prefix)

    @classmethod
    def execute(cls, classifier_head: HostedClassifierHead, filename_prefix: str) -> io.NodeOutput:
        """Write the file. Raises ValueError if it cannot be written under this prefix."""
        with new_file(FOLDER, filename_prefix, SUFFIX) as path:
            save_classifier_head(path, classifier_head.head)
        return saved_as(path)
