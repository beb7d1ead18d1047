"""Where the host's text encoders put the tokens of a prompt: words are at their places in the context.

The host's own code cuts templates off and fills contexts up. In it, a stand-in for the language model gives
each token its place in the stream, so the context tells which token of the stream stands where.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2Tokenizer

from inner_guidance.host.recording.prompt_words import prompt_words

PROMPT = "a red sphere of the user, keep the key features and describe a red assistant"
FOLDER = Path(import_module("comfy.text_encoders.qwen_image").__file__).parent
IMAGE_TOKENS = 50


class Places:
    """A text encoder whose output is the place of each token in its stream, in each of `layers`."""

    def __init__(self, layers=0, bare=False):
        self.layers = layers
        self.bare = bare

    def encode_token_weights(self, sections):
        places = [
            place
            for place, (token, *_) in enumerate(token for section in sections for token in section)
            for _ in range(IMAGE_TOKENS if isinstance(token, dict) else 1)
        ]
        out = torch.tensor(places, dtype=torch.float32).view(1, -1, 1)
        if self.layers:
            out = out[:, None].expand(1, self.layers, -1, 1)
        mask = {} if self.bare else {"attention_mask": torch.ones(1, len(places), dtype=torch.long)}
        return (out, torch.zeros(1, 1)) if self.bare else (out, torch.zeros(1, 1), mask)


def stacked(token_ids, attention_mask, capture_layers):
    """The language model of Lens."""
    places = torch.arange(token_ids.shape[1], dtype=torch.float32).view(1, -1, 1)
    return {"hidden_states": [places]}


def of_lens(module):
    inner = module.LensGptOssClipModel.__new__(module.LensGptOssClipModel)
    torch.nn.Module.__init__(inner)
    inner.execution_device, inner._pad_token_id, inner.selected_layers = None, 0, (0,)
    inner.txt_offset, inner.transformer = module.LENS_TXT_OFFSET, stacked
    return inner


def qwen_vocabulary(_):
    tokenizer = Qwen2Tokenizer.from_pretrained(FOLDER / "qwen25_tokenizer")
    return {"tokenizer_json": tokenizer.backend_tokenizer.to_str().encode()}


def pile_vocabulary(_):
    return {"spiece_model": (FOLDER / "t5_pile_tokenizer" / "tokenizer.model").read_bytes()}


# Module, tokenizer and text encoder; then the layers of the output, and the vocabulary of a checkpoint.
FAMILIES = {
    "Qwen-Image": ("qwen_image", "QwenImageTokenizer", "QwenImageTEModel"),
    "Z-Image": ("z_image", "ZImageTokenizer", "ZImageTEModel"),
    "Krea 2": ("krea2", "Krea2Tokenizer", "Krea2TEModel", 1),
    "Mage-Flow": ("mage_flow", "MageFlowTokenizer", "MageFlowTEModel"),
    "Boogu": ("boogu", "BooguTokenizer", "BooguTEModel"),
    "JoyImage": ("joyimage", "JoyImageTokenizer", "JoyImageTEModel"),
    "Ideogram 4": ("ideogram4", "Ideogram4Tokenizer", "Ideogram4TEModel", 1),
    "OmniGen 2": ("omnigen2", "Omnigen2Tokenizer", "Omnigen2Model"),
    "LongCat-Image": ("longcat_image", "LongCatImageTokenizer", "LongCatImageTEModel"),
    "HunyuanVideo": ("hunyuan_video", "HunyuanVideoTokenizer", "HunyuanVideoClipModel"),
    "HunyuanImage": ("hunyuan_image", "HunyuanImageTokenizer", "HunyuanImageTEModel"),
    "Kandinsky 5": ("kandinsky5", "Kandinsky5TokenizerImage", "Kandinsky5TEModel"),
    "FLUX.2 Klein": ("flux", "KleinTokenizer", "Flux2TEModel", 3),
    "Chroma": ("pixart_t5", "PixArtTokenizer", "PixArtT5XXL"),
    "Cosmos": ("cosmos", "CosmosT5Tokenizer", "CosmosT5XXL"),
    "Anima": ("anima", "AnimaTokenizer", "AnimaTEModel"),
    "Lens": ("gpt_oss", "LensTokenizer", "LensTEModel", 0, qwen_vocabulary),
    "PixelDiT": ("pixeldit", "PixelDiTGemma2Tokenizer", "PixelDiTGemma2TE", 0, pile_vocabulary),
    "Lumina 2": ("lumina2", "LuminaTokenizer", "LuminaModel", 0, pile_vocabulary),
    "AuraFlow": ("aura_t5", "AuraT5Tokenizer", "AuraT5Model", 0, pile_vocabulary),
}


@cache
def clip_of(name):
    """What of a CLIP tokenizes."""
    module, tokenizer_class, _, *rest = FAMILIES[name]
    vocabulary = rest[1](name) if len(rest) > 1 else {}
    tokenizer = getattr(import_module(f"comfy.text_encoders.{module}"), tokenizer_class)(
        tokenizer_data=vocabulary
    )
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)


def encoder_of(name, keys):
    """The host's text encoder, with stand-ins for its language models."""
    module_name, _, encoder_class, *rest = FAMILIES[name]
    module = import_module(f"comfy.text_encoders.{module_name}")
    encoder = getattr(module, encoder_class).__new__(getattr(module, encoder_class))
    torch.nn.Module.__init__(encoder)
    encoder.byt5_small = None
    for key in keys:
        inner = of_lens(module) if name == "Lens" else Places(rest[0] if rest else 0, bare=key == "l")
        for attribute in (key, f"clip_{key}"):
            object.__setattr__(encoder, attribute, inner)
    encoder.clip_name = encoder.clip = next(iter(keys))
    return encoder


def context_of(name, prompt, images=()):
    """The tokens of the context, as texts; None for a token of an image."""
    clip = clip_of(name)
    tokens = clip.tokenize(prompt, images=list(images)) if images else clip.tokenize(prompt)
    key = "llama" if "llama" in tokens else next(iter(tokens))
    out = encoder_of(name, tokens).encode_token_weights(tokens)[0]
    out = out.flatten(0, -3)[0] if out.ndim == 4 else out[0]
    if name == "Anima":  # the model asks with T5's tokens, and fills up
        key, out = "t5xxl", torch.arange(512).clamp_max(len(tokens["t5xxl"][0]) - 1)[:, None]
    stream = [token for section in tokens[key] for token, *_ in section]
    holder = getattr(clip.tokenizer, key, None) or getattr(clip.tokenizer, f"clip_{key}")

    def text(token):
        if isinstance(token, dict):
            return None
        return getattr(holder.tokenizer, "decode", lambda ids: holder.untokenize([(ids[0], 1.0)])[0][1])(
            [token]
        )

    return [text(stream[place]) for place in out[:, 0].long().tolist()]


def written(context, words):
    return {word.text: [context[place].strip(" ▁,") for place in word.places] for word in words}


def expected(prompt):
    words = prompt.replace(",", " ").split()
    return {word: [word] * words.count(word) for word in words}


@pytest.mark.parametrize("name", FAMILIES)
def test_words_are_where_the_text_encoder_puts_them(name):
    # Some versions of transformers lose the spaces of HunyuanVideo's vocabulary.
    prompt = PROMPT if name != "HunyuanVideo" else "sphere,user,features"
    context = context_of(name, prompt)

    found = written(context, prompt_words(clip_of(name), prompt, len(context)))

    if name in ("PixelDiT", "Lumina 2", "AuraFlow"):  # another vocabulary, with several tokens in a word
        found = {word: "".join(spelled) for word, spelled in found.items()}
        assert found == {word: "".join(spelled) for word, spelled in expected(prompt).items()}
    else:
        assert found == expected(prompt)


@pytest.mark.parametrize("name", ["Qwen-Image", "Boogu", "Mage-Flow", "JoyImage", "LongCat-Image"])
def test_reference_images_that_the_text_encoder_sees_stand_in_front_of_the_words(name):
    image = torch.zeros(1, 64, 64, 3)
    context = context_of(name, PROMPT, [image] if name in ("Qwen-Image", "LongCat-Image") else [image, image])
    assert None in context

    words = prompt_words(clip_of(name), PROMPT, len(context), references=True)

    assert written(context, words) == expected(PROMPT)
    with pytest.raises(ValueError, match="Connect the CLIP and write the prompt"):
        prompt_words(clip_of(name), PROMPT, len(context) + 600)
