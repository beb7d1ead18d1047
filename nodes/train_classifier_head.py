"""The Train Classifier Head node."""

from typing import Any

from comfy_api.latest import io

from ..classifier_head.training import ClassifierTrainingSettings
from ..host.classifier.training import train_classifier_head
from ..host.depth.head_training import AUTO
from .schema import ADVANCED, CLASSIFIER_HEAD, search_aliases


class InnerTrainClassifierHead(io.ComfyNode):
    """Trains a classifier head on named images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerTrainClassifierHead",
            display_name="Train Classifier Head",
            **search_aliases("classifier", "linear probe"),
            category="model/training",
            description=(
                "Trains a small network to classify images from a diffusion model's features, even while "
                "they are still mostly noise. The model itself is not changed. Use a few dozen images of "
                "each class. Interrupting keeps the best head so far."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to read. The head works with every model of its family."
                ),
                io.Vae.Input("vae", tooltip="The model's VAE, which encodes the images."),
                io.Image.Input(
                    "images",
                    tooltip="A batch of images of all classes. More images give a better head.",
                ),
                io.String.Input(
                    "class_names",
                    multiline=True,
                    default="",
                    tooltip=(
                        "The class of each image, one line per image, in the order of the images. "
                        "'cat * 12' stands for twelve cats in a row."
                    ),
                ),
                io.String.Input(
                    "blocks",
                    default=AUTO,
                    tooltip=(
                        "The blocks to read. auto uses the middle block and the middle of the decoder. o0, "
                        "o1, ... are the blocks of the decoder, deepest first. Models without a decoder, "
                        "such as Flux, have b0, b1, ...; there auto uses blocks up to half depth. o3-o8 is "
                        "a range; separate several with commas. Higher numbers see finer detail, lower ones "
                        "more of the scene."
                    ),
                ),
                io.Int.Input(
                    "steps",
                    default=1000,
                    min=1,
                    max=100_000,
                    tooltip=(
                        "The number of training steps, each of which is one pass of the model. Higher "
                        "values fit the images more closely; with few images, more steps soon stop helping."
                    ),
                ),
                io.Int.Input(
                    "batch_size",
                    default=8,
                    min=1,
                    max=256,
                    tooltip="Images per step. Higher values are steadier, but slower and need more memory.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.001,
                    min=0.000001,
                    max=1.0,
                    step=0.000001,
                    tooltip=(
                        "How far each step goes. Higher values learn faster; if the value is too high, the "
                        "loss jumps."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,
                    control_after_generate=False,
                    tooltip=(
                        "The seed for the initial weights, the order of the images, the noise and the "
                        "choice of held-out images. The same seed gives the same head."
                    ),
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip=(
                        "The prompt for the model during training, ideally an empty one. UNets (SD 1.x, 2.x, "
                        "XL) can do without: leave unconnected to use zeros instead."
                    ),
                ),
            ],
            outputs=[
                CLASSIFIER_HEAD.Output(
                    display_name="classifier_head",
                    tooltip="The trained head. Connect it to Classifier Guidance or Save Classifier Head.",
                ),
                io.Image.Output(
                    display_name="report",
                    tooltip="The loss, and the accuracy at each noise level on held-out images.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        images: Any,
        class_names: str,
        blocks: str,
        steps: int,
        batch_size: int,
        learning_rate: float,
        seed: int,
        positive: Any = None,
    ) -> io.NodeOutput:
        """Head and report. Raises ValueError before training if the inputs do not match or cannot be used."""
        settings = ClassifierTrainingSettings(steps, batch_size, learning_rate, seed)
        trained = train_classifier_head(model, vae, images, class_names, blocks, settings, positive)
        return io.NodeOutput(trained.head, trained.report)
