"""experiments/dag_rows.py and swept_rows.py: what the rows are."""

from inner_guidance.experiments.dag_rows import EQUAL_COST, NONE, compared, hard_slope, hinged
from inner_guidance.experiments.swept_rows import swept


def test_every_group_has_its_baseline_first():
    for group in (*compared().values(), *swept().values(), *hinged().values()):
        assert next(iter(group.rows)) == NONE
        plain = [name for name, row in group.rows.items() if row.settings is None]
        assert plain in ([NONE], [NONE, EQUAL_COST])


def test_compared_rows_switch_off_what_they_are_not_named_after():
    rows = compared()["captions"].rows

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


def test_hinged_rows_differ_in_the_hinge_alone():
    for rows in (group.rows for group in hinged().values()):
        for loss in ("DCG", "DPG"):
            every, hinge, sharp = (rows[f"{loss}, {how}"] for how in ("every image", "hinge", "sharp hinge"))
            assert every.settings == hinge.settings == sharp.settings
            assert (every.calibrated, hinge.calibrated, sharp.calibrated) == (False, True, True)
            assert (hinge.losses, sharp.losses) == ({}, {"hinge_slope": hard_slope})
