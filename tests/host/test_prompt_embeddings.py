"""Embeddings in a prompt: each is one word, with the tokens of its own vectors."""

from types import SimpleNamespace

import pytest
import torch
from comfy import sd1_clip

from inner_guidance.host.recording.prompt_words import prompt_words

pytestmark = pytest.mark.oldest_host


@pytest.fixture
def with_embeddings(monkeypatch):
    """SD 1's CLIP with embeddings of three vectors each."""
    files = {name: torch.full((3, 768), float(number)) for number, name in enumerate(("style", "Bad-hands"))}
    monkeypatch.setattr(sd1_clip, "load_embed", lambda name, *_: files.get(name))
    tokenizer = sd1_clip.SD1Tokenizer(embedding_directory="there")
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)


def test_an_embedding_is_one_word(with_embeddings):
    found = prompt_words(with_embeddings, "a cat embedding:style dog", 77)
    words = {word.text: word for word in found}

    assert list(words) == ["a", "cat", "embedding:style", "dog"]
    assert words["embedding:style"].places == (3, 4, 5)
    assert words["dog"].places == (6,)


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        ("embedding:style", (1, 2, 3, 9, 10, 11)),
        ("embedding:bad-hands", ()),
        ("embedding:Bad-hands", (5, 6, 7)),
        ("cat embedding:style", (8, 9, 10, 11)),
        ("embedding", (1, 2, 3, 5, 6, 7, 9, 10, 11)),
    ],
)
def test_embeddings_have_the_places_of_their_own_vectors(wanted, places, with_embeddings):
    """The tokens of "embedding:style, (embedding:Bad-hands:1.2) cat embedding:style" but for the start."""
    prompt = "embedding:style, (embedding:Bad-hands:1.2) cat embedding:style"

    if not places:
        with pytest.raises(ValueError, match="words are: embedding:style, embedding:Bad-hands, cat"):
            prompt_words(with_embeddings, prompt, 77, wanted)
        return
    (word,) = prompt_words(with_embeddings, prompt, 77, wanted)
    assert word.places == places
