"""The demo model that ships with the pack, for trying the guidance nodes without a download."""

import hashlib

from comfy_api.latest import io

from ..depth_head.head_files import load_depth_head
from ..depth_head.prior_files import load_depth_prior
from ..host.depth.heads import HostedDepthHead
from ..host.depth.priors import make_unet
from .schema import DEPTH_HEAD, DEPTH_PRIOR


class InnerLoadDemoModel(io.ComfyNode):
    """Hands out the demo model in the host's own kinds of objects.

    demo/model.py, which makes them, is imported when the node runs: it needs `comfy.sd`, and the start of the
    host must not wait for it.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        """No inputs: there is one demo model."""
        return io.Schema(
            node_id="InnerLoadDemoModel",
            display_name="Load Demo Model",
            category="model/loaders",
            description=(
                "A small diffusion model that ships with the pack: rooms with coloured spheres, boxes and "
                "cylinders, 256 x 256 px, drawn in seconds without a GPU. Connect it like a checkpoint."
            ),
            outputs=[
                io.Model.Output(
                    tooltip="The diffusion model, for samplers and guidance nodes. It learned on "
                    "256 x 256 px; other sizes hold together less well. Try 20 steps, CFG 3, dpmpp_2m, "
                    "karras: a higher CFG keeps closer to the prompt, in harsher colours."
                ),
                io.Clip.Output(
                    tooltip="Its text encoder, for CLIP Text Encode. It knows 21 words, for prompts such as "
                    "'red sphere, blue box, grey checker floor, white wall'; the log says which it ignores."
                ),
                io.Vae.Output(tooltip="Its autoencoder, for VAE Encode and VAE Decode, tiled or not."),
                DEPTH_HEAD.Output(
                    display_name="DEPTH_HEAD",
                    tooltip="Its depth head, which reads from its features how far things are: for Depth "
                    "Estimate, Record Features and Depth-Aware Guidance.",
                ),
                DEPTH_PRIOR.Output(
                    display_name="DEPTH_PRIOR",
                    tooltip="A depth prior, which knows the depth maps of such rooms: for "
                    "Depth-Aware Guidance.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls) -> str:
        """A hash of the weight files: the node runs again when they were replaced."""
        from ..demo import model as demo

        content = hashlib.sha256()
        for path in sorted(demo.WEIGHTS.glob("*.safetensors")):
            content.update(path.name.encode() + path.read_bytes())
        return content.hexdigest()

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """MODEL, CLIP, VAE, DEPTH_HEAD and DEPTH_PRIOR.

        Raises:
            ValueError: when a weight file is missing or damaged; the sentence says how to get it back.
        """
        from ..demo import model as demo

        head, prior = (demo.WEIGHTS / name for name in (demo.DEPTH_HEAD_FILE, demo.DEPTH_PRIOR_FILE))
        for path in (head, prior):
            demo.read_weights(path)
        return io.NodeOutput(
            demo.load_model(demo.WEIGHTS / demo.UNET_FILE),
            demo.load_clip(demo.WEIGHTS / demo.TEXT_FILE),
            demo.load_vae(demo.WEIGHTS / demo.AUTOENCODER_FILE),
            HostedDepthHead.of(load_depth_head(head)),
            load_depth_prior(prior, make_unet),
        )
