"""What else stands in a transformer's sequence: other images, longer texts, and what cannot be read."""

import comfy.ldm.anima.model
import comfy.ldm.chroma_radiance.model
import comfy.ldm.hidream_o1.model
import comfy.ldm.lumina.model
import comfy.ldm.wan.ar_model
import comfy.ldm.wan.model
import comfy.samplers
import comfy_extras.nodes_flux as nodes_flux
import pytest
import torch

from inner_guidance.host.taps.blocks import attention_blocks, feature_blocks
from inner_guidance.host.taps.joint_models import joint_model
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.model_families import (
    FAMILIES,
    TEXT,
    assert_features,
    assert_received,
    depth_head,
    heads_after_tokens,
    patcher,
    record,
    sample,
)

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


@pytest.mark.parametrize("texts", [(), (5,), (40,), (5, 40)], ids=str)
def test_words_stand_behind_the_texts_of_reference_images(texts):
    """Z-Image Omni: a text before each reference image, filled to 32 tokens, and one behind the prompt."""
    reference = {
        "reference_latents": [tiny.noise(1, 16, 8, 6, seed=4)],
        "reference_latents_text_embeds": [tiny.prompt(9, tokens=length)[0][0] for length in texts],
    }
    watched, recorded = rec.record_attention(tiny.patcher("zimage", "FLOW"), blocks="b1")
    with rec.all_attention(watched) as calls:
        latent = torch.zeros(1, 16, 16, 12)
        tiny.sample(watched, latent, positive=tiny.prompt(0, **reference), cfg=1.0, steps=1)

    q, k = (heads_after_tokens(t[0]) for t in calls[-2])
    before, behind = sum(32 * -(-n // 32) for n in texts[:1] or [1]), sum(32 * -(-n // 32) for n in texts[1:])
    start = before + 32 + behind + 32  # the prompt and the reference image are filled to 32 tokens, too
    assert len(k) == start + 64
    given = rec.given(q[start : start + 48], k, calls[-2][0].shape[1], (8, 6))
    (step,) = rec.steps_of(recorded)
    rec.assert_close_in_half(step.prompt["positive", "b1", 0], given[:, before : before + TEXT])
    assert recorded.runs[0].references == {("positive", 0)}


def sample_with_kept_keys(name, guide):
    """Two steps with a reference image. FluxKVCache keeps its keys in the first; then it is left out."""
    family = FAMILIES[name]
    reference = tiny.noise(1, *family.shape[:-2], 8, 6, seed=4)
    model = guide(nodes_flux.FluxKVCache.execute(patcher(name)).result[0])
    prompts = {
        branch: tiny.prompt(seed, reference_latents=[reference])
        for branch, seed in (("positive", 0), ("negative", 1))
    }
    with rec.all_attention(model) as calls:
        return tiny.sample(model, torch.zeros(1, *family.shape), steps=2, **prompts), calls


@pytest.mark.parametrize("name", ["flux2", "flux2 single"])
def test_reference_images_whose_keys_are_kept_are_not_the_image(name):
    """They stand behind the keys of the sequence."""
    family, (call, start, _) = FAMILIES[name], REFERENCES[name]
    records = []

    def recorded(model):
        model, record = rec.record_attention(model, blocks=family.name)
        records.append(record)
        return model

    _, calls = sample_with_kept_keys(name, recorded)

    _, second = rec.steps_of(records[0])
    q, k = calls[len(calls) // 2 + call]
    assert (q.shape[2], k.shape[2]) == (512 + 48, 512 + 48 + 48)
    assert_received(second, family, (q, k), start)


def test_blocks_in_which_keys_are_kept_do_not_run_again():
    """In the backward pass, the reference image would be there twice."""
    head = depth_head("flux2")
    plain, _ = sample_with_kept_keys("flux2", lambda model: model)
    image, checkpointed = (
        sample_with_kept_keys(
            "flux2",
            lambda model, on=on: depth.depth_guided(model, depth_head=head, checkpointing=on),
        )[0]
        for on in (False, True)
    )

    tiny.assert_steered(image, plain)
    torch.testing.assert_close(checkpointed, image, rtol=1e-3, atol=1e-3 * float(image.abs().max()))


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
    [
        comfy.ldm.wan.model.SCAIL2WanModel,
        comfy.ldm.wan.ar_model.CausalWanModel,
        comfy.ldm.hidream_o1.model.HiDreamO1Transformer,
    ],
)
def test_what_cannot_be_read_is_refused_by_name(model_class):
    model = model_class.__new__(model_class)
    for blocks in (attention_blocks, feature_blocks):
        with pytest.raises(
            ValueError, match=f"this model, {model_class.__name__}, cannot be read: use a model"
        ):
            blocks(model)


def test_an_evaluation_without_a_text_has_no_words():
    """That of the negative of Ideogram 4, where DualModelGuider is given none."""
    family = FAMILIES["ideogram"]

    def run(model):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(tiny.prompt(0), [[None, {}]])
        guider.set_cfg(4.0)
        return tiny.sample_with(guider, torch.zeros(1, *family.shape), steps=1)

    watched, attention = rec.record_attention(patcher("ideogram"), blocks="b1")

    assert torch.equal(run(watched), run(patcher("ideogram")))
    (step,) = rec.steps_of(attention)
    assert set(step.received) == {("positive", "b1"), ("negative", "b1")}
    assert set(step.prompt) == {("positive", "b1", 0)}
    tiny.assert_steered(run(tiny.guided(patcher("ideogram"), threshold=0.0)), run(patcher("ideogram")))


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
        assert sum(says in message for message in caplog.messages) == 1


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
    assert sum("Record Attention recorded nothing" in message for message in caplog.messages) == 1
