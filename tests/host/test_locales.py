"""The translations fit the schemas: the frontend shows English wherever a key is missing or stale."""

import json
import re

import pytest
from comfy_api.latest import io

from inner_guidance.nodes import NODES

LANGUAGES = {"zh": "[\u4e00-\u9fff]", "ja": "[\u3040-\u30ff\u4e00-\u9fff]", "ko": "[\uac00-\ud7a3]"}
SCHEMAS = [node.define_schema() for node in NODES]
# Blocks (m0.0, u0-u2), numbers, folders and quoted prompts are the same in every language.
KEPT = re.compile(r"models/\w+|[a-z]\d+(?:[.-][a-z]?\d+)?(?!\w)|\d+(?:\.\d+)?|(?<!\w)'[^']+'")
SYNTAX = re.compile(r"[{}|@]")  # has a meaning in the messages of the frontend's vue-i18n


def read(root, language, name):
    return json.loads((root / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


def english():
    """Text by place in nodeDefs.json. An output that is called as its type needs no name of its own."""
    texts = {}
    for schema in SCHEMAS:
        texts[schema.node_id, "display_name"] = schema.display_name
        texts[schema.node_id, "description"] = schema.description
        for slot in schema.inputs:
            texts[schema.node_id, "inputs", slot.id, "name"] = slot.id
            texts[schema.node_id, "inputs", slot.id, "tooltip"] = slot.tooltip
        for number, slot in enumerate(schema.outputs):
            if (slot.display_name or slot.io_type) != slot.io_type:
                texts[schema.node_id, "outputs", str(number), "name"] = slot.display_name
            texts[schema.node_id, "outputs", str(number), "tooltip"] = slot.tooltip
    return texts


def flattened(tree, *place):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flattened(value, *place, key)
        else:
            yield (*place, key), value


def options_named(schema, tooltip):
    """The options of the node's combos that a tooltip explains, as `eps: the noise`."""
    combos = [slot for slot in schema.inputs if isinstance(slot, io.Combo.Input)]
    return [option for slot in combos for option in slot.options if f"{option}: " in tooltip]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_translated_and_none_is_stale(language, root):
    translated = dict(flattened(read(root, language, "nodeDefs")))

    assert sorted(translated) == sorted(english())


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_in_the_language(language, root):
    letters = re.compile(LANGUAGES[language])
    foreign = [
        place
        for place, text in flattened(read(root, language, "nodeDefs"))
        if not letters.search(text) and text not in ("VAE", "CLIP", "Latent")
    ]

    assert foreign == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_the_same_in_every_language_is_kept(language, root):
    translated = dict(flattened(read(root, language, "nodeDefs")))
    schemas = {schema.node_id: schema for schema in SCHEMAS}
    lost = []
    for place, text in english().items():
        kept = KEPT.findall(text) + options_named(schemas[place[0]], text) if place[-1] != "name" else []
        lost += [(place, word) for word in kept if word not in translated[place]]

    assert lost == []
    assert not [text for text in translated.values() if SYNTAX.search(text)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_packs_own_types_and_category_have_names(language, root):
    """Those that the host has, such as model/patch, it translates itself."""
    slots = [slot for schema in SCHEMAS for slot in (*schema.inputs, *schema.outputs)]
    types = {slot.io_type for slot in slots if re.search("HEAD|PRIOR|RECORD", slot.io_type)}

    names = read(root, language, "main")

    assert names["dataTypes"].keys() == types
    assert names["nodeCategories"].keys() == {"inspection"}
    assert any(schema.category == "image/inspection" for schema in SCHEMAS)
