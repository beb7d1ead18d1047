"""Every family of transformers: attention, features and guidance on a tiny model of the host's own class."""

import contextlib
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import comfy.ldm.anima.model
import comfy.ldm.chroma_radiance.model
import comfy.ldm.ernie.model
import comfy.ldm.hidream_o1.model
import comfy.ldm.hydit.attn_layers
import comfy.ldm.lumina.model
import comfy.ldm.pixart.blocks
import comfy.ldm.wan.model
import pytest
import torch

from inner_guidance.host.taps.blocks import attention_blocks, feature_blocks
from inner_guidance.host.taps.joint_models import joint_model
from inner_guidance.nodes.depth_estimate import InnerDepthEstimate
from inner_guidance.nodes.train_depth_head import InnerTrainDepthHead
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.depth_models import depth_guided
from inner_guidance.tests.support.node_defaults import execute

TEXT = 7  # tokens of a prompt of tiny_models


@dataclass(frozen=True)
class Family:
    """Where one block of a tiny model is, and what it attends to.

    module, output: the block, and which of its outputs has the image, beginning at `first`. call: the number
    of its attention in a pass. start: where the image begins in it. prompt: (call, where the prompt begins).
    values: what a prompt holds beyond tiny_models' own.
    """

    model_type: str
    name: str
    module: str
    call: int
    start: int
    prompt: tuple[int, int] | None
    output: int | None = None
    first: int = 0
    shape: tuple[int, ...] = (16, 16, 12)
    grid: tuple[int, ...] = (8, 6)
    values: dict = field(default_factory=dict)


VIDEO = {"shape": (16, 1, 16, 12), "grid": (1, 8, 6)}
UNPATCHED = {"shape": (16, 8, 6)}
PIXELS = {"shape": (3, 32, 24)}
LLAMA = torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(5))
NO_PADDING = {"attention_mask": torch.ones(1, TEXT, dtype=torch.long)}
HYDIT = {
    "attention_mask": torch.ones(1, TEXT, dtype=torch.long),
    "conditioning_mt5xl": torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(6)),
    "attention_mask_mt5xl": torch.ones(1, 5, dtype=torch.long),
}
FAMILIES = {
    "flux2": Family("FLUX", "b1", "double_blocks.1", 1, 512, (1, 0), output=0, **UNPATCHED),
    "flux2 single": Family("FLUX", "b3", "single_blocks.1", 3, 512, (3, 0), first=512, **UNPATCHED),
    "krea2": Family("FLUX", "b1", "blocks.1", 5, TEXT, (5, 0), first=TEXT, **VIDEO),
    "radiance": Family("FLUX", "b1", "double_blocks.1", 1, TEXT, (1, 0), output=0, **PIXELS),
    "cosmos": Family("FLOW_COSMOS", "b1", "blocks.1", 2, 0, (3, 0), **VIDEO),
    "wan": Family("FLOW", "b1", "blocks.1", 2, 0, (3, 0), **VIDEO),
    "wan video": Family("FLOW", "b1", "blocks.1", 2, 0, (3, 0), shape=(16, 3, 8, 6), grid=(3, 4, 3)),
    "hidream": Family(
        "FLOW", "b1", "double_stream_blocks.1", 1, 0, (1, 48), output=0, values={"conditioning_llama3": LLAMA}
    ),
    "hidream single": Family(
        "FLOW", "b2", "single_stream_blocks.0", 2, 0, (2, 48), values={"conditioning_llama3": LLAMA}
    ),
    "hunyuan": Family("FLOW", "b1", "double_blocks.1", 3, TEXT, (3, 0), output=0),
    "hunyuan single": Family("FLOW", "b3", "single_blocks.1", 5, TEXT, (5, 0), first=TEXT),
    "hunyuan15": Family(
        "FLOW",
        "b1",
        "double_blocks.1",
        3,
        4 + TEXT,
        (3, 4),
        output=0,
        shape=(16, 3, 8, 6),
        grid=(3, 4, 3),
        values={
            "clip_vision_output": SimpleNamespace(
                last_hidden_state=torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(7))
            )
        },
    ),
    "ideogram": Family("FLOW", "b1", "layers.1", 1, TEXT, (1, 0), first=TEXT, **UNPATCHED),
    "ernie": Family("FLOW", "b1", "layers.1", 1, 0, (1, 48), **UNPATCHED),
    "pixart": Family("EPS", "b1", "blocks.1", 2, 0, (3, 0), shape=(4, 40, 28), grid=(20, 14)),
    "hydit": Family("V_PREDICTION", "b3", "blocks.3", 6, 0, None, shape=(4, 16, 12), values=HYDIT),
    "aura": Family("FLOW", "b1", "double_layers.1", 1, 15, (1, 8), output=1),
    "aura single": Family("FLOW", "b2", "single_layers.0", 2, 15, (2, 8), first=15),
    "kandinsky": Family("FLOW", "b1", "visual_transformer_blocks.1", 3, 0, (4, 0)),
    "omnigen2": Family("FLOW", "b1", "layers.1", 3, TEXT, (3, 0), first=TEXT, values=NO_PADDING),
    "boogu": Family("FLOW", "b1", "double_stream_layers.1", 4, TEXT, (4, 0), output=0, values=NO_PADDING),
    "boogu single": Family(
        "FLOW", "b2", "single_stream_layers.0", 6, TEXT, (6, 0), first=TEXT, values=NO_PADDING
    ),
    "lens": Family("FLUX", "b1", "transformer_blocks.1", 1, 0, (1, 48), output=1, **UNPATCHED),
    "joyimage": Family("FLOW", "b1", "double_blocks.1", 1, 0, (1, 48), output=0, **VIDEO),
    "mage": Family("FLOW", "b1", "transformer_blocks.1", 1, TEXT, (1, 0), output=1, **UNPATCHED),
    "pixeldit": Family("FLOW", "b1", "patch_blocks.1", 1, TEXT, (1, 0), output=0, **PIXELS),
}


def patcher(name):
    return tiny.patcher(name.split()[0], FAMILIES[name].model_type)


def sample(model, family, **values):
    prompts = {
        branch: tiny.prompt(seed, **family.values, **values)
        for branch, seed in (("positive", 0), ("negative", 1))
    }
    return tiny.sample(model, torch.zeros(1, *family.shape), steps=1, **prompts)


def heads_after_tokens(t):
    """(heads, tokens, d) to (tokens, heads * d)."""
    return t.transpose(0, 1).flatten(1)


# Their attention is seen by no override: the name is replaced for the spy.
NOT_OVERRIDABLE = {
    "ernie": comfy.ldm.ernie.model,
    "pixart": comfy.ldm.pixart.blocks,
    "hydit": comfy.ldm.hydit.attn_layers,
}


@contextlib.contextmanager
def all_attention(name, model):
    """recorded_runs.all_attention, also of the families that no override sees."""
    with rec.all_attention(model) as calls:
        if name not in NOT_OVERRIDABLE:
            yield calls
            return
        override = model.model_options["transformer_options"].pop("optimized_attention_override")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                NOT_OVERRIDABLE[name],
                "optimized_attention",
                partial(override, NOT_OVERRIDABLE[name].optimized_attention),
            )
            yield calls


def record(name, model=None, **values):
    """Attention and features at one step, the block's outputs, all attention calls, and the samples."""
    family = FAMILIES[name]
    watched, attention = rec.record_attention(model or patcher(name), blocks=family.name)
    watched, features = rec.record_features(watched, blocks=family.name)
    outputs = []

    def keep(module, args, out):  # blocks of Flux change their input in place
        outputs.append((out if family.output is None else out[family.output]).clone())

    block = watched.get_model_object("diffusion_model").get_submodule(family.module)
    hook = block.register_forward_hook(keep)
    with all_attention(name, watched) as calls:
        samples = sample(watched, family, **values)
    hook.remove()
    calls = [(q, k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)) for q, k in calls]
    (attention_step,), (feature_step,) = rec.steps_of(attention), rec.steps_of(features)
    return attention_step, feature_step, outputs, calls, samples


def assert_received(step, family, call, start):
    """The softmax of one block's q and k among the image's tokens, for both prompts."""
    image = slice(start, start + torch.Size(family.grid).numel())
    for row, branch in enumerate(["negative", "positive"]):
        q, k = (heads_after_tokens(t[row])[image] for t in call)
        rec.assert_close(step.received[branch, family.name], rec.received(q, k, len(call[0][0]), family.grid))


def assert_features(step, family, output, first):
    """The image's tokens of the positive prompt, in the order of the grid."""
    tokens = output[1].flatten(0, -2)[first:][: torch.Size(family.grid).numel()]
    features = step.features["positive", family.name][0].float()
    torch.testing.assert_close(features, tokens.T.unflatten(1, family.grid), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_recorded(name):
    """Attention received and given to the prompt, and features; the image stays bit-identical."""
    family = FAMILIES[name]

    attention, features, outputs, calls, samples = record(name)

    assert samples.isfinite().all()
    assert torch.equal(samples, sample(patcher(name), family))
    assert_received(attention, family, calls[family.call], family.start)
    assert_features(features, family, outputs[0], family.first)
    if family.prompt is None:
        assert not attention.prompt
        return
    call, start = family.prompt
    q, k = (heads_after_tokens(t[1]) for t in calls[call])
    text = 512 if name.startswith("flux2") else TEXT
    given = rec.softmax(q[family.start :][: torch.Size(family.grid).numel()], k, len(calls[call][0][0]))
    rec.assert_close_in_half(
        attention.prompt["positive", family.name, 0],
        given[:, start : start + text].T.reshape(1, text, *family.grid),
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_guidance_changes_the_image(name):
    family = FAMILIES[name]
    guided = patcher(name)
    seen = tiny.watch(guided)

    tiny.assert_steered(
        sample(tiny.guided(guided, blocks=family.name), family), sample(patcher(name), family)
    )
    assert seen.labels == [[1, 0], [1]]


class RandomVAE:
    """Random latents of a family's shape: what a VAE is to the nodes."""

    def __init__(self, family):
        self.shape = family.shape

    def vae_encode_crop_pixels(self, pixels):
        return pixels

    def encode(self, pixels):
        return tiny.noise(len(pixels), *self.shape, seed=int(pixels.sum()))


def depth_head(name, **values):
    """A head on the family's block, trained for a step on random latents."""
    family = FAMILIES[name]
    images = torch.rand(3, 32, 24, 3, generator=torch.Generator().manual_seed(0))
    head, _ = execute(
        InnerTrainDepthHead,
        model=patcher(name),
        vae=RandomVAE(family),
        images=images,
        depths=images,
        steps=1,
        batch_size=1,
        positive=tiny.prompt(0, **family.values | values),
        blocks=f"b0,{family.name}",
        weak_blocks="b0",
    )
    return head


NO_GRADIENT = {"cosmos", "ernie", "pixart", "hydit", "joyimage"}
OF_IMAGES = [name for name in FAMILIES if name not in ("wan video", "hunyuan15")]


@pytest.mark.parametrize("name", OF_IMAGES)
def test_depth_is_what_the_head_makes_of_the_tokens(name):
    family = FAMILIES[name]
    head, model = depth_head(name), patcher(name)
    outputs = []

    def keep(module, args, out):
        outputs.append((out if family.output is None else out[family.output]).clone())

    diffusion_model = model.get_model_object("diffusion_model")
    hook = diffusion_model.get_submodule(family.module).register_forward_hook(keep)
    read = []
    network = head.head.network.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    _, _, depth = execute(
        InnerDepthEstimate,
        model=model,
        depth_head=head,
        latent={"samples": tiny.noise(1, *family.shape)},
        ensemble=1,
        positive=tiny.prompt(0, **family.values),
    )
    hook.remove()
    network.remove()

    assert depth.shape == (1, *family.shape[-2:])
    assert list(head.head.network.taps) == ["b0", family.name]
    tokens = outputs[0][0].flatten(0, -2)[family.first :][: torch.Size(family.grid).numel()]
    assert torch.equal(read[0][family.name][0], tokens.T.unflatten(1, family.grid[-2:]))


@pytest.mark.parametrize("name", OF_IMAGES)
def test_depth_aware_guidance(name):
    """It changes the image, or is refused by the model's name where the host has no backward pass."""
    family = FAMILIES[name]
    guided = depth_guided(patcher(name), depth_head=depth_head(name))
    joint = joint_model(guided.get_model_object("diffusion_model"))
    if name in NO_GRADIENT:
        with pytest.raises(ValueError, match=f"gradients, which {joint.name} does not give"):
            sample(guided, family)
        return

    tiny.assert_steered(sample(guided, family), sample(patcher(name), family))


# With another image in the sequence. name: the number of the block's attention call, where the image begins
# in it, and where in the block's output.
REFERENCES = {
    "flux2": (1, 512, 0),
    "flux2 single": (3, 512, 512),
    "krea2": (5, TEXT, TEXT),
    "omnigen2": (4, TEXT + 12, TEXT + 12),  # the other image has a refiner
    "boogu": (5, TEXT + 12, 12),
    "boogu single": (7, TEXT + 12, TEXT + 12),
    "joyimage": (1, 0, 0),
    "mage": (1, TEXT, 0),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_images_are_not_the_image(name):
    family = FAMILIES[name]
    call, start, first = REFERENCES[name]
    reference = tiny.noise(1, *family.shape[:-2], 8, 6, seed=4)

    attention, features, outputs, calls, _ = record(name, reference_latents=[reference])

    assert calls[call][0].shape[2] >= TEXT + 48 + 12
    assert_received(attention, family, calls[call], start)
    assert_features(features, family, outputs[0], first)


@pytest.mark.parametrize(
    ("model_class", "name"),
    [
        (comfy.ldm.anima.model.Anima, "Cosmos-Predict2"),
        (comfy.ldm.chroma_radiance.model.ChromaRadiance, "Chroma"),
        (comfy.ldm.lumina.model.NextDiTPixelSpace, "Lumina 2"),
        (comfy.ldm.wan.model.VaceWanModel, "Wan"),
    ],
)
def test_a_model_belongs_to_the_family_of_its_base_class(model_class, name):
    assert joint_model(model_class.__new__(model_class)).name == name


@pytest.mark.parametrize(
    "model_class",
    [comfy.ldm.wan.model.SCAIL2WanModel, comfy.ldm.hidream_o1.model.HiDreamO1Transformer],
)
def test_what_cannot_be_read_is_refused_by_name(model_class):
    model = model_class.__new__(model_class)
    for blocks in (attention_blocks, feature_blocks):
        with pytest.raises(
            ValueError, match=f"this model, {model_class.__name__}, cannot be read: use a model"
        ):
            blocks(model)


def test_nothing_is_read_of_the_doubled_rows_of_hidream_e1(caplog):
    """The image that is edited stands on the right, in every row of tokens."""
    family = FAMILIES["hidream single"]
    edited = {"concat_latent_image": tiny.noise(1, *family.shape, seed=4)}
    plain = sample(patcher("hidream"), family, **edited)

    for node, says in (
        (rec.record_attention, "Record Attention recorded nothing"),
        (rec.record_features, "Record Features recorded nothing"),
        (lambda model, **settings: (tiny.guided(model, **settings), None), "could not be read"),
    ):
        caplog.clear()
        watched, _ = node(patcher("hidream"), blocks=family.name)
        assert torch.equal(sample(watched, family, **edited), plain)
        assert [says in message for message in caplog.messages] == [True]


def test_a_head_does_not_learn_from_what_cannot_be_read():
    family = FAMILIES["hidream single"]
    values = family.values | {"concat_latent_image": tiny.noise(1, *family.shape, seed=4)}
    with pytest.raises(ValueError, match="The features of this model cannot be read, because its tokens"):
        depth_head("hidream single", **values)


def longer(part):
    """A post_input patch that puts five tokens in front of the text, as USO does, or of the images."""

    def patch(inputs):
        changed = {
            name: torch.cat([tensor[:, :5], tensor], dim=1)
            for name in (part, f"{part}_ids")
            if (tensor := inputs.get(name)) is not None
        }
        return inputs | changed

    return patch


# Where the image then begins in the attention and in the block's output.
LONGER_TEXT = {
    "flux2": (512 + 5, 0),
    "flux2 single": (512 + 5, 512 + 5),
    "krea2": (TEXT + 5, TEXT + 5),
    "mage": (TEXT + 5, 0),
}


@pytest.mark.parametrize("name", LONGER_TEXT)
def test_text_of_another_node_moves_the_image_and_hides_the_words(name):
    family, (start, first) = FAMILIES[name], LONGER_TEXT[name]
    model = patcher(name)
    model.set_model_post_input_patch(longer("txt"))

    attention, features, outputs, calls, _ = record(name, model)

    assert_received(attention, family, calls[family.call], start)
    assert_features(features, family, outputs[0], first)
    assert not attention.prompt


def test_nothing_is_read_where_another_node_adds_images(caplog):
    family = FAMILIES["flux2"]
    model = patcher("flux2")
    model.set_model_post_input_patch(longer("img"))
    watched, recorded = rec.record_attention(model, blocks=family.name)

    sample(watched, family)

    assert not rec.steps_of(recorded)
    assert ["Record Attention recorded nothing" in message for message in caplog.messages] == [True]
