"""experiments/seeds.py and the rows that use it: what chooses a setting never reports it."""

from itertools import combinations

from inner_guidance.demo.renders import HELD_OUT
from inner_guidance.experiments import sag_rows, seeds

RANGES = {name: value for name, value in vars(seeds).items() if isinstance(value, range)}


def test_ranges_are_held_out_and_share_no_seed():
    assert min(one.start for one in RANGES.values()) >= HELD_OUT
    for one, other in combinations(RANGES.values(), 2):
        assert one.stop <= other.start or other.stop <= one.start


def test_sweeps_tune_and_comparisons_report():
    for transformer in (False, True):
        assert {group.seeds for group in sag_rows.swept(transformer).values()} == {seeds.TUNING}
        for of in (sag_rows.reported, sag_rows.of_other_judges, sag_rows.of_other_classifiers):
            assert {group.seeds for group in of(transformer).values()} <= {seeds.REPORTING}


def test_every_group_of_sag_has_its_baseline_first():
    for transformer in (False, True):
        groups = {**sag_rows.swept(transformer), **sag_rows.reported(transformer)}
        for group in groups.values():
            assert next(iter(group.rows)) == sag_rows.NONE
            assert group.rows[sag_rows.NONE] == sag_rows.Row()
            assert all(not row.as_strong_as or row.as_strong_as in group.rows for row in group.rows.values())


def test_equal_cost_has_as_many_evaluations_as_sag():
    groups = sag_rows.reported(transformer=False)
    for group in (group for name, group in groups.items() if not name.startswith("PAG")):
        prompts = 1 if group.cfg == 1 else 2
        plain = group.rows["none, equal cost"].steps * prompts
        assert plain == sag_rows.STEPS * (prompts + 1)
