"""pictures/layer_maps.py: which maps are shown together, and under which title."""

import pytest
import torch

from inner_guidance.pictures.layer_maps import LayerMap, grouped


def flat(step, layer):
    return LayerMap(step, layer, torch.ones(1, 2, 2))


class TestGrouped:
    maps = (flat(0, "d1.0"), flat(0, "m0.0"), flat(0, "m0.1"), flat(4, "d1.0"), flat(4, "m0.0"))

    @pytest.mark.parametrize(
        ("each_block", "each_step", "expected"),
        [
            (False, False, [(None, None, 5)]),
            (True, False, [("d1", None, 2), ("m0", None, 3)]),
            (False, True, [(None, 0, 3), (None, 4, 2)]),
            (True, True, [("d1", 0, 1), ("d1", 4, 1), ("m0", 0, 2), ("m0", 4, 1)]),
        ],
    )
    def test_blocks_in_forward_order_then_steps(self, each_block, each_step, expected):
        groups = grouped(self.maps, each_block, each_step)

        assert [(group.block, group.step, len(group.members)) for group in groups] == expected

    def test_joint_models_have_blocks_without_transformers(self):
        (group,) = grouped([flat(0, "b12")], each_block=True, each_step=False)

        assert group.block == "b12"


def test_titles_name_blocks_and_steps():
    assert [group.title for group in grouped(TestGrouped.maps, False, False)] == ["2 blocks, steps 1-5"]
    assert [group.title for group in grouped(TestGrouped.maps, True, True)] == [
        "d1, step 1",
        "d1, step 5",
        "m0, step 1",
        "m0, step 5",
    ]
