"""The Load Demo Model node: a small model that ships with the pack."""

import hashlib

from comfy_api.latest import io

from ..classifier_head.head_files import load_classifier_head
from ..depth_head.head_files import load_depth_head
from ..depth_head.prior_files import load_depth_prior
from ..host.classifier.heads import HostedClassifierHead
from ..host.depth.heads import HostedDepthHead
from ..host.depth.priors import make_unet
from .schema import CLASSIFIER_HEAD, DEPTH_HEAD, DEPTH_PRIOR, search_aliases

# The keys of demo.model.FAMILIES. That module is imported only when the node runs.
FAMILIES = ("UNet", "transformer")


class InnerLoadDemoModel(io.ComfyNode):
    """Loads the demo model as the MODEL, CLIP and VAE objects of the host.

    demo/model.py is imported only when the node runs: it imports `comfy.sd`, which would delay the start of
    the host.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Input and outputs. Shared workflow files depend on them: add at the end, never rename."""
        return io.Schema(
            node_id="InnerLoadDemoModel",
            display_name="Load Demo Model",
            **search_aliases("inner guidance", "example model"),
            category="model/loaders",
            description=(
                "Loads a small diffusion model that ships with the pack. It draws rooms with coloured "
                "spheres, boxes and cylinders at 256 x 256 px, in seconds and without a GPU. Connect it "
                "like a checkpoint."
            ),
            inputs=[
                io.Combo.Input(
                    "family",
                    options=list(FAMILIES),
                    default=FAMILIES[0],
                    optional=True,
                    tooltip=(
                        "UNet: built like Stable Diffusion; the better of the two. transformer: a small "
                        "NextDiT with rectified flow, built like Lumina 2 and Z-Image; use the scheduler "
                        "simple. Both take the same prompts, and each brings its own heads."
                    ),
                )
            ],
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
                CLASSIFIER_HEAD.Output(
                    display_name="CLASSIFIER_HEAD",
                    tooltip=(
                        "A classifier of the main object, such as 'red sphere', on the model's features. "
                        "Connect it to Classifier Guidance."
                    ),
                ),
                DEPTH_HEAD.Output(
                    display_name="LATENT_HEAD",
                    tooltip=(
                        "A depth head that reads the model's current estimate of the finished latent, not "
                        "its features; the same for both families. With it, guidance towards a target costs "
                        "next to nothing. Connect it to Depth-Aware Guidance or Depth Estimate."
                    ),
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, family: str = FAMILIES[0]) -> str:
        """A hash of the weight files, so that the node runs again after they are replaced."""
        from ..demo import model as demo

        content = hashlib.sha256()
        for path in sorted(demo.WEIGHTS.glob("*.safetensors")):
            content.update(path.name.encode() + path.read_bytes())
        return content.hexdigest()

    @classmethod
    def execute(cls, family: str = FAMILIES[0]) -> io.NodeOutput:
        """MODEL, CLIP, VAE, DEPTH_HEAD, DEPTH_PRIOR, CLASSIFIER_HEAD and LATENT_HEAD.

        Raises ValueError for a weight file that is missing or damaged; the message says how to restore it.
        """
        from ..demo import model as demo

        files = demo.FAMILIES[family]
        model, head, classifier, prior, latent_head = (
            demo.WEIGHTS / name
            for name in (
                files.model,
                files.depth_head,
                files.classifier_head,
                demo.DEPTH_PRIOR_FILE,
                demo.LATENT_HEAD_FILE,
            )
        )
        for path in (head, classifier, prior, latent_head):
            demo.read_weights(path)
        return io.NodeOutput(
            demo.load_model(model),
            demo.load_clip(demo.WEIGHTS / demo.TEXT_FILE),
            demo.load_vae(demo.WEIGHTS / demo.AUTOENCODER_FILE),
            HostedDepthHead.of(load_depth_head(head)),
            load_depth_prior(prior, make_unet),
            HostedClassifierHead.of(load_classifier_head(classifier)),
            HostedDepthHead.of(load_depth_head(latent_head)),
        )
