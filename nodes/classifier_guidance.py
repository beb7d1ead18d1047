"""The Classifier Guidance node."""

import logging
from typing import Any

from comfy_api.latest import io

from ..host.classifier.heads import HostedClassifierHead, require_classifier_fits
from ..host.keys import attach
from ..host.steering.classifier_guidance import ClassifierGuidance, ClassifierSettings
from .schema import ADVANCED, CLASSIFIER_HEAD, percent, search_aliases


class InnerClassifierGuidance(io.ComfyNode):
    """Attaches classifier guidance (arXiv:2105.05233) to a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerClassifierGuidance",
            display_name="Classifier Guidance",
            **search_aliases("classifier", "class guidance", "steer towards a class"),
            category="model/patch/unet",
            description=(
                "Steers the image towards a class, by a classifier that reads the model's own features. It "
                "needs no prompt. Connect it between the model and the sampler; it combines with "
                "Self-Attention Guidance, Depth-Aware Guidance and CFG."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to guide, after its LoRAs."),
                CLASSIFIER_HEAD.Input(
                    "classifier_head",
                    tooltip=(
                        "The classifier, from Load Classifier Head, Train Classifier Head or Load Demo "
                        "Model. It must have been trained for this model family."
                    ),
                ),
                io.String.Input(
                    "class_name",
                    default="",
                    tooltip=(
                        "One of the head's classes, such as 'red sphere' for the demo model. An unknown name "
                        "is refused with the list of those that the head knows."
                    ),
                ),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    tooltip=(
                        "How strongly to steer. 1 follows the classifier as if it were exact; higher values "
                        "make the class clearer and the images more alike; 0 turns it off at no cost."
                    ),
                ),
                percent(
                    "start_percent",
                    0.0,
                    "The point in the sampling, from 0 to 1, at which guidance starts. Higher values leave "
                    "the composition alone.",
                ),
                percent(
                    "end_percent",
                    1.0,
                    "The point in the sampling, from 0 to 1, at which guidance ends. Lower values save time "
                    "and leave details alone.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=False,
                    optional=True,
                    tooltip=(
                        "On: compute blocks a second time in the backward pass. This needs much less memory "
                        "and takes somewhat longer. The image is the same."
                    ),
                    extra_dict=ADVANCED,
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The guided model. Connect it to a sampler or to further model patches."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        classifier_head: HostedClassifierHead,
        class_name: str,
        scale: float,
        start_percent: float,
        end_percent: float,
        checkpointing: bool = False,
    ) -> io.NodeOutput:
        """A guided clone of the model. Raises ValueError for an unknown class or a head of another model."""
        require_classifier_fits(classifier_head.head, model)
        label = classifier_head.head.label(class_name)
        if scale == 0:
            logging.warning(
                "Classifier Guidance: it does nothing, because scale is 0. Raise it, or bypass the node."
            )
            return io.NodeOutput(model.clone())
        settings = ClassifierSettings(
            classifier_head, label, scale, start_percent, end_percent, checkpointing
        )
        return io.NodeOutput(attach(model, ClassifierGuidance(settings)))
