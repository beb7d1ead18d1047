"""The host's own tokenizers and the demo model's, each as what of a CLIP tokenizes."""

from functools import cache
from types import SimpleNamespace

from comfy import sd1_clip, sdxl_clip
from comfy.text_encoders import flux, qwen_image, sd3_clip, z_image

from inner_guidance.demo.text import SceneTokenizer

TOKENIZERS = {
    "sd1": sd1_clip.SD1Tokenizer,
    "sdxl": sdxl_clip.SDXLTokenizer,
    "sd3": sd3_clip.SD3Tokenizer,
    "flux": flux.FluxTokenizer,
    "qwen": qwen_image.QwenImageTokenizer,
    "zimage": z_image.ZImageTokenizer,
    "demo": SceneTokenizer,
}


@cache
def clip(name):
    """What of a CLIP tokenizes: comfy.sd.CLIP hands the text to its tokenizer as it is."""
    tokenizer = TOKENIZERS[name]()
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)


def context(name, key, prompt):
    """The token numbers of a prompt, as the text encoder gets them."""
    return [token for section in clip(name).tokenize(prompt)[key] for token, _ in section]
