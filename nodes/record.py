"""The Record Attention and Record Features nodes."""

from typing import Any

from comfy_api.latest import io

from ..host.depth.heads import HostedDepthHead, require_head_fits, require_reads_features
from ..host.keys import attach
from ..host.recording.readers import PROMPT, RECEIVED, AttentionReader, DepthReader, FeatureReader
from ..host.recording.records import AttentionRecord, FeatureRecord
from ..host.recording.run import Recording
from ..host.taps.blocks import Blocks, Layer, attention_blocks, feature_blocks, layer_names, parse_blocks
from .schema import ADVANCED, ATTENTION_RECORD, DEPTH_HEAD, FEATURE_RECORD, percent, search_aliases

BRANCHES = {"positive": ("positive",), "negative": ("negative",), "both": ()}


def schedule_inputs(max_steps: int, memory: str) -> list[io.Input]:
    """The inputs that choose which steps are recorded. memory: a sentence on how much RAM they take."""
    return [
        percent(
            "start_percent",
            0.0,
            "The point in the sampling, from 0 to 1, at which recording starts. Higher values skip the "
            "first, noisy steps.",
        ),
        percent(
            "end_percent",
            1.0,
            "The point in the sampling, from 0 to 1, at which recording ends. Higher values include the "
            "last steps, which form fine detail.",
        ),
        io.Int.Input(
            "max_steps",
            default=max_steps,
            min=1,
            max=1000,
            tooltip=(
                "The maximum number of steps to keep, spread evenly over the range. Higher values show the "
                f"sampling in finer steps and take more memory (RAM): {memory}"
            ),
            extra_dict=ADVANCED,
        ),
    ]


PREVIEW = io.Boolean.Input(
    "preview",
    default=True,
    tooltip=(
        "Show what is recorded on this node while a sampler runs, twice a second. Turn it off to save some "
        "time."
    ),
)


class InnerRecordAttention(io.ComfyNode):
    """Attaches a recording of the attention to a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerRecordAttention",
            display_name="Record Attention",
            **search_aliases("attention map", "cross attention", "self attention", "hook"),
            category="model/patch/unet",
            description=(
                "Records where the model looks while it samples, without changing the image: how much "
                "attention each place receives, and which words each place attends to. Connect the model "
                "through this node to a sampler, and the record to Attention Maps."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to record, after its LoRAs and other patches."),
                io.String.Input(
                    "blocks",
                    default="m0",
                    tooltip=(
                        "The blocks to record attention from. m0 is the middle block; d0, d1, ... are the "
                        "blocks going down, u0, u1, ... those going up. u0-u2 is a range, m0.0 one "
                        "transformer of a block; separate several with commas. The middle sees the "
                        "composition; higher u numbers see finer detail and take more time and memory. "
                        "Flux, SD3 and similar models have b0, b1, ... instead, and m0 is the one at half "
                        "depth."
                    ),
                ),
                *schedule_inputs(
                    50,
                    "for m0, 20 kB per step and image with SD 1.5 at 512 px and 3 MB with SDXL at 1024 px. "
                    "The runs of the last 8 samplers are kept.",
                ),
                io.Boolean.Input(
                    "prompt",
                    default=True,
                    tooltip=(
                        "Also record the attention to the words of the prompt. Turn it off to record "
                        "self-attention only, in less time and a fraction of the memory."
                    ),
                    extra_dict=ADVANCED,
                ),
                PREVIEW,
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The model with recording. Connect it to a sampler or to further model patches."
                ),
                ATTENTION_RECORD.Output(
                    display_name="record",
                    tooltip=(
                        "The record, filled by every sampler that uses this model. Connect it to Attention "
                        "Maps or Attention Spectrum, together with the sampler's LATENT."
                    ),
                ),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # the host ignores the hidden id where it caches outputs by inputs
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        blocks: str,
        start_percent: float,
        end_percent: float,
        max_steps: int,
        prompt: bool,
        preview: bool,
    ) -> io.NodeOutput:
        """A recorded clone of the model, and the record. Raises ValueError for unknown blocks."""
        reader = AttentionReader(
            named_layers(blocks, attention_blocks(model.get_model_object("diffusion_model"))),
            (RECEIVED, PROMPT) if prompt else (RECEIVED,),
        )
        node_id = getattr(cls.hidden, "unique_id", None) if preview else None
        record = AttentionRecord()
        recording = Recording(reader, record, (), start_percent, end_percent, max_steps, node_id)
        return io.NodeOutput(attach(model, recording), record)


class InnerRecordFeatures(io.ComfyNode):
    """Attaches a recording of the features to a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerRecordFeatures",
            display_name="Record Features",
            **search_aliases("UNet features", "activations", "depth map", "readout", "hook"),
            category="model/patch/unet",
            description=(
                "Records what the blocks of the model compute while it samples, without changing the image: "
                "features that distinguish objects and their parts and, with a depth head, depth. Connect "
                "the model through this node to a sampler, and the record to Feature Maps or Depth "
                "Estimate."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to record, after its LoRAs and other patches."),
                io.String.Input(
                    "blocks",
                    default="m0",
                    tooltip=(
                        "The blocks whose output to record. i0, i1, ... are the blocks going down, m0 is "
                        "the middle, o0, o1, ... are the blocks going up, with or without attention; r0, "
                        "r1, ... are what the residual block in o0, o1, ... adds to its input. o3-o6 is a "
                        "range; separate several with commas. Lower o numbers are coarser and distinguish "
                        "objects; higher ones show texture. Flux, SD3 and similar models have b0, b1, ... "
                        "instead, and m0 is the one at half depth."
                    ),
                ),
                io.Combo.Input(
                    "branch",
                    options=list(BRANCHES),
                    default="positive",
                    tooltip=(
                        "Which prompt's features to record: the positive one's, the negative one's, or "
                        "both, which takes twice the memory."
                    ),
                ),
                *schedule_inputs(
                    10,
                    "per step and image, 0.2 MB for m0 and 3 MB for the finest block with SD 1.5 at 512 px; "
                    "3 MB and 10 MB with SDXL at 1024 px. The runs of the last 8 samplers are kept.",
                ),
                PREVIEW,
                DEPTH_HEAD.Input(
                    "depth_head",
                    optional=True,
                    tooltip=(
                        "Reads depth at every recorded step, for Depth Estimate, and shows it on this node "
                        "instead of the features. It must have been trained for this model family. Leave "
                        "unconnected to record features only."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The model with recording. Connect it to a sampler or to further model patches."
                ),
                FEATURE_RECORD.Output(
                    display_name="record",
                    tooltip=(
                        "The record, filled by every sampler that uses this model. Connect it to Feature "
                        "Maps or Depth Estimate, together with the sampler's LATENT."
                    ),
                ),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # the host ignores the hidden id where it caches outputs by inputs
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        blocks: str,
        branch: str,
        start_percent: float,
        end_percent: float,
        max_steps: int,
        preview: bool,
        depth_head: HostedDepthHead | None = None,
    ) -> io.NodeOutput:
        """A recorded clone of the model, and the record. Raises ValueError if blocks or head do not fit."""
        reader = FeatureReader(
            named_layers(blocks, feature_blocks(model.get_model_object("diffusion_model")))
        )
        if depth_head is not None:
            require_reads_features(depth_head.head, "Record Features")
            require_head_fits(depth_head.head, model)
        recording = Recording(
            reader,
            FeatureRecord(),
            BRANCHES[branch],
            start_percent,
            end_percent,
            max_steps,
            getattr(cls.hidden, "unique_id", None) if preview else None,
            None if depth_head is None else DepthReader(depth_head),
        )
        needed = [] if depth_head is None else [depth_head.patcher]
        return io.NodeOutput(attach(model, recording, needed), recording.record)


def named_layers(text: str, available: Blocks[Layer]) -> dict[Layer, str]:
    """The layers that a `blocks` input names, and their names. Raises ValueError for unknown blocks."""
    names = layer_names(available)
    return {layer: names[layer] for layer in parse_blocks(text, available)}
