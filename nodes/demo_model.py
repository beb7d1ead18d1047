"""The Load Demo Model node: a small model that ships with the pack."""

import hashlib

from comfy_api.latest import io

from ..depth_head.head_files import load_depth_head
from ..depth_head.prior_files import load_depth_prior
from ..host.depth.heads import HostedDepthHead
from ..host.depth.priors import make_unet
from .schema import DEPTH_HEAD, DEPTH_PRIOR


class InnerLoadDemoModel(io.ComfyNode):
    """Loads the demo model as the MODEL, CLIP and VAE objects of the host.

    demo/model.py is imported only when the node runs: it imports `comfy.sd`, which would delay the start of
    the host.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Outputs only. Shared workflow files depend on them: add at the end, never rename."""
        return io.Schema(
            node_id="InnerLoadDemoModel",
            display_name="Load Demo Model",
            category="model/loaders",
            description=(
                "Loads a small diffusion model that ships with the pack. It draws rooms with coloured "
                "spheres, boxes and cylinders at 256 x 256 px, in seconds and without a GPU. Connect it "
                "like a checkpoint."
            ),
            outputs=[
                io.Model.Output(
                    tooltip=(
                        "The diffusion model, for samplers and guidance nodes. It was trained at 256 x 256 "
                        "px; other sizes are less coherent. Start with 20 steps, CFG 3, dpmpp_2m and "
                        "karras. A higher CFG follows the prompt more closely, with harsher colours."
                    )
                ),
                io.Clip.Output(
                    tooltip=(
                        "The text encoder, for CLIP Text Encode. It knows 21 words, for prompts such as "
                        "'red sphere, blue box, grey checker floor, white wall'. The log lists the words "
                        "that it ignores."
                    )
                ),
                io.Vae.Output(tooltip="The autoencoder, for VAE Encode and VAE Decode, tiled or not."),
                DEPTH_HEAD.Output(
                    display_name="DEPTH_HEAD",
                    tooltip=(
                        "The depth head, which reads depth from the model's features. Connect it to Depth "
                        "Estimate, Record Features or Depth-Aware Guidance."
                    ),
                ),
                DEPTH_PRIOR.Output(
                    display_name="DEPTH_PRIOR",
                    tooltip=(
                        "A depth prior trained on depth maps of such rooms. Connect it to Depth-Aware "
                        "Guidance."
                    ),
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls) -> str:
        """A hash of the weight files, so that the node runs again after they are replaced."""
        from ..demo import model as demo

        content = hashlib.sha256()
        for path in sorted(demo.WEIGHTS.glob("*.safetensors")):
            content.update(path.name.encode() + path.read_bytes())
        return content.hexdigest()

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """MODEL, CLIP, VAE, DEPTH_HEAD and DEPTH_PRIOR.

        Raises:
            ValueError: a weight file is missing or damaged; the message says how to restore it.
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
