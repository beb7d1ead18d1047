"""experiments/depth_aware_guidance.py and guidance_tables.py: what the rows are, and how cells read."""

import torch

from inner_guidance.experiments.depth_aware_guidance import compared, swept
from inner_guidance.experiments.depth_figures import Change
from inner_guidance.experiments.guidance_tables import fidelity, text
from inner_guidance.experiments.guided_pictures import NONE


def test_every_group_has_its_baseline_first():
    for group in (*compared().values(), *swept().values()):
        assert next(iter(group.rows)) == NONE
        assert [name for name, row in group.rows.items() if row.settings is None] == [NONE]


def test_compared_rows_switch_off_what_they_are_not_named_after():
    rows = compared()["empty"].rows

    assert rows["DCG"].settings == {"prior_scale": 0.0, "target_scale": 0.0}
    assert rows["DPG"].settings == {"consistency_scale": 0.0, "target_scale": 0.0}
    assert rows["DCG + DPG"].settings == {"target_scale": 0.0}
    assert rows["target"].settings == {"consistency_scale": 0.0, "prior_scale": 0.0}


def test_swept_rows_say_what_they_are():
    rows = swept()["robust"].rows

    assert rows["DPG, 4"].settings["prior_scale"] == 4
    assert rows["DPG, 4"].settings["consistency_scale"] == 0
    assert rows["DCG 0.5 + DPG 1, from 0.4"].settings["self_start_percent"] == 0.4
    assert rows["target, to 0.8"].settings["target_end_percent"] == 0.8
    assert rows["DPG, tau 0.1 to 0.5"].constants["PRIOR_LEVELS"] == (0.1, 0.5)
    assert [name for name, row in rows.items() if row.losses] == ["DPG by L_dp", "DPG by L_dp, from 0"]


def test_fidelity_of_right_half_right_and_wrong_pictures():
    objects = torch.tensor([[0.9, 0.8, 0.1], [0.9, 0.2, 0.1], [0.1, 0.1, 0.9]])
    present = torch.tensor([[1.0, 1.0, 0.0]]).expand(3, -1)

    main, found = fidelity(objects, present, torch.tensor([0, 1, 0]))

    assert main.tolist() == [1, 0, 0]
    assert found.tolist() == [1, 0.5, 0]


def test_cells():
    change = Change(0.12345, -0.01, 0.002)

    assert text(change, plain=True) == "0.1235"
    assert text(change, plain=False) == "0.1235 (-0.0100 ± 0.0020)"
    assert text(Change(12.345, 0.5, 0.25), plain=False) == "12.35 (+0.50 ± 0.25)"
    assert text(0.5, plain=False) == "0.500"
    assert text("", plain=True) == ""
