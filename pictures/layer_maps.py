"""Recorded maps, each of one layer at one step, and how they are grouped for display."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor


class LayerMap(NamedTuple):
    """A map (B, *grid) or features (B, C, *grid); grid is (h, w), or (frames, h, w) for videos."""

    step: int
    layer: str
    values: Tensor

    @property
    def block(self) -> str:
        """The block that the layer is in: "m0" for its transformer "m0.3"."""
        return self.layer.partition(".")[0]


class Group(NamedTuple):
    """Maps that are shown as one picture; block and step are None for a mean over them."""

    block: str | None
    step: int | None
    members: list[LayerMap]

    @property
    def title(self) -> str:
        """Its block or their number, and its steps, counted from 1: "m0, steps 3-20", "5 blocks, step 1"."""
        blocks = list(dict.fromkeys(one.block for one in self.members))
        first, last = min(one.step for one in self.members) + 1, max(one.step for one in self.members) + 1
        steps = f"step {first}" if first == last else f"steps {first}-{last}"
        return f"{blocks[0] if len(blocks) == 1 else f'{len(blocks)} blocks'}, {steps}"


def grouped(found: Iterable[LayerMap], each_block: bool, each_step: bool) -> list[Group]:
    """By block and step, or all blocks or steps in one; in the order of the blocks, then of the steps."""
    groups: dict[tuple[str | None, int | None], list[LayerMap]] = {}
    for one in found:
        key = (one.block if each_block else None, one.step if each_step else None)
        groups.setdefault(key, []).append(one)
    blocks = list(dict.fromkeys(block for block, _ in groups))
    in_order = sorted(groups.items(), key=lambda item: (blocks.index(item[0][0]), item[0][1] or 0))
    return [Group(block, step, members) for (block, step), members in in_order]
