"""A classifier head: a network, and the facts that its use depends on."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..depth_head.files import legible
from .network import ClassifierNetwork

LISTED = 40


@dataclass(frozen=True)
class ClassifierHead:
    """network: in evaluation mode, float32. classes: their names, in the order of the logits.

    model_family: in words. training: a summary, plain values. name: the file's, for messages.
    """

    network: ClassifierNetwork
    model_family: str
    classes: tuple[str, ...]
    training: Mapping[str, Any] = field(default_factory=dict)
    name: str = "the classifier head"

    def label(self, class_name: str) -> int:
        """The number of a class. Raises ValueError, which lists the classes, for an unknown name."""
        wanted = folded(class_name)
        for number, name in enumerate(self.classes):
            if folded(name) == wanted:
                return number
        known = ", ".join(self.classes[:LISTED])
        more = f" and {len(self.classes) - LISTED} more" if len(self.classes) > LISTED else ""
        raise ValueError(
            f"class_name: {self.name} does not know '{legible(class_name)}'. It knows {known}{more}."
        )


def folded(class_name: str) -> str:
    """A class name for comparisons, whatever its capitals and however its accents are encoded."""
    return unicodedata.normalize("NFC", class_name.strip().casefold())
