"""The nodes that record what a model sees while any sampler runs."""

from typing import Any

from comfy_api.latest import io

from ..host.depth.heads import HostedDepthHead, require_head_fits
from ..host.keys import attach
from ..host.recording.readers import PROMPT, RECEIVED, AttentionReader, DepthReader, FeatureReader
from ..host.recording.records import AttentionRecord, FeatureRecord
from ..host.recording.run import Recording
from ..host.taps.blocks import Blocks, Layer, attention_blocks, feature_blocks, layer_names, parse_blocks
from .schema import ADVANCED, ATTENTION_RECORD, DEPTH_HEAD, FEATURE_RECORD, percent

BRANCHES = {"positive": ("positive",), "negative": ("negative",), "both": ()}


def schedule_inputs(max_steps: int, memory: str) -> list[io.Input]:
    """The inputs that say which steps are recorded."""
    return [
        percent(
            "start_percent",
            0.0,
            "Where in the sampling recording begins. Higher leaves out the first, noisy steps.",
        ),
        percent(
            "end_percent",
            1.0,
            "Where in the sampling recording ends. Higher records the last, fine steps too.",
        ),
        io.Int.Input(
            "max_steps",
            default=max_steps,
            min=1,
            max=1000,
            tooltip=(
                "How many steps are kept at most, evenly spread over the range. Higher shows the sampling in "
                f"finer steps and takes more memory (RAM): {memory}"
            ),
            extra_dict=ADVANCED,
        ),
    ]


PREVIEW = io.Boolean.Input(
    "preview",
    default=True,
    tooltip="Show what is recorded on this node while a sampler runs, twice a second. Off saves some time.",
)


class InnerRecordAttention(io.ComfyNode):
    """Patches a model so that what it attends to is recorded while any sampler runs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Shared workflow files hold these inputs: what is added has a default, nothing is renamed."""
        return io.Schema(
            node_id="InnerRecordAttention",
            display_name="Record Attention",
            category="model/patch/unet",
            description=(
                "Writes down where the model looks while it samples, without changing the image: how much "
                "each place is looked at, and which words each place listens to. Wire the model through it "
                "into a sampler, and the record into Attention Maps."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to watch, after its LoRAs and other patches."),
                io.String.Input(
                    "blocks",
                    default="m0",
                    tooltip=(
                        "Whose attention is recorded: m0 the middle block, d0, d1, ... going down, u0, u1, "
                        "... going up, ranges (u0-u2), one transformer of a block (m0.0), several with "
                        "commas. The middle sees the composition; higher u numbers see finer detail, at more "
                        "time and memory. Flux, SD3 and their like have b0, b1, ..., of which m0 is the one "
                        "at half depth."
                    ),
                ),
                *schedule_inputs(
                    50,
                    "for m0, each step and image takes 20 kB with SD 1.5 at 512 px and 3 MB with SDXL at "
                    "1024 px. The runs of the last 8 samplers are kept.",
                ),
                io.Boolean.Input(
                    "prompt",
                    default=True,
                    tooltip=(
                        "Record the attention to the words of the prompt too. Off records self-attention "
                        "alone, in less time and a fraction of the memory."
                    ),
                    extra_dict=ADVANCED,
                ),
                PREVIEW,
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The model that is watched. Connect it to a sampler, or to more model patches."
                ),
                ATTENTION_RECORD.Output(
                    display_name="record",
                    tooltip=(
                        "What was recorded, filled by every sampler that the model goes to. Connect it to "
                        "Attention Maps or Attention Spectrum, together with the sampler's LATENT."
                    ),
                ),
            ],
            hidden=[io.Hidden.unique_id],
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
        """Check the blocks against the model and attach the recording to a clone of it."""
        reader = AttentionReader(
            named_layers(blocks, attention_blocks(model.get_model_object("diffusion_model"))),
            (RECEIVED, PROMPT) if prompt else (RECEIVED,),
        )
        node_id = getattr(cls.hidden, "unique_id", None) if preview else None
        record = AttentionRecord()
        recording = Recording(reader, record, (), start_percent, end_percent, max_steps, node_id)
        return io.NodeOutput(attach(model, recording), record)


class InnerRecordFeatures(io.ComfyNode):
    """Patches a model so that what its blocks compute is recorded while any sampler runs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Shared workflow files hold these inputs: what is added has a default, nothing is renamed."""
        return io.Schema(
            node_id="InnerRecordFeatures",
            display_name="Record Features",
            category="model/patch/unet",
            description=(
                "Writes down what the blocks of the model compute while it samples, without changing the "
                "image: features that tell objects and their parts apart, and with a depth head the depth. "
                "Wire the model through it into a sampler, and the record into Feature Maps or Depth "
                "Estimate."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to watch, after its LoRAs and other patches."),
                io.String.Input(
                    "blocks",
                    default="m0",
                    tooltip=(
                        "Whose output is recorded: i0, i1, ... the blocks going down, m0 the middle, o0, o1, "
                        "... going up, with attention or without; r0, r1, ... what the residual block in o0, "
                        "o1, ... adds to its input. Ranges (o3-o6), several with commas. Lower o numbers are "
                        "coarser and tell objects apart, higher ones show texture. Flux, SD3 and their like "
                        "have b0, b1, ..., of which m0 is the one at half depth."
                    ),
                ),
                io.Combo.Input(
                    "branch",
                    options=list(BRANCHES),
                    default="positive",
                    tooltip=(
                        "Whose features are recorded: those with the positive prompt, with the negative one, "
                        "or both, which takes twice the memory."
                    ),
                ),
                *schedule_inputs(
                    10,
                    "each step and image takes 0.2 MB for m0 and 3 MB for the finest block of SD 1.5 at "
                    "512 px, 3 MB and 10 MB of SDXL at 1024 px. The runs of the last 8 samplers are kept.",
                ),
                PREVIEW,
                DEPTH_HEAD.Input(
                    "depth_head",
                    optional=True,
                    tooltip=(
                        "Reads the depth at every recorded step, for Depth Estimate, and shows it on this "
                        "node instead of the features. It must have been made for this model family."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The model that is watched. Connect it to a sampler, or to more model patches."
                ),
                FEATURE_RECORD.Output(
                    display_name="record",
                    tooltip=(
                        "What was recorded, filled by every sampler that the model goes to. Connect it to "
                        "Feature Maps or Depth Estimate, together with the sampler's LATENT."
                    ),
                ),
            ],
            hidden=[io.Hidden.unique_id],
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
        """Check blocks and head against the model and attach the recording to a clone of it."""
        reader = FeatureReader(
            named_layers(blocks, feature_blocks(model.get_model_object("diffusion_model")))
        )
        if depth_head is not None:
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
    """The layers that a `blocks` input names, with their names. Raises ValueError for what is not there."""
    names = layer_names(available)
    return {layer: names[layer] for layer in parse_blocks(text, available)}
