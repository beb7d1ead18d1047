"""experiments/dag_experiment.py: rows grow together, parts share the work, nothing is drawn twice."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from inner_guidance.demo import model as demo
from inner_guidance.demo.scenes import sample_scene
from inner_guidance.experiments import dag_experiment, dag_pictures, seeds
from inner_guidance.experiments.dag_experiment import as_far_as_drawn, draw
from inner_guidance.experiments.dag_judges import Judges, Seen
from inner_guidance.experiments.dag_pictures import Drawings
from inner_guidance.experiments.dag_rows import NONE, Group, Row
from inner_guidance.experiments.dag_table import of_row
from inner_guidance.experiments.kept_files import save

GROUP = Group("", {NONE: Row(None), "a": Row({}), "b": Row({})}, 30, range(100, 200))
FIRST, SECOND, THIRD = 100, 110, 120


class Book:
    """Judges that write down what they are asked for."""

    def __init__(self):
        self.asked = []

    def batch(self, group, row, first):
        self.asked.append((row, first))


def asked(*share):
    book = Book()
    draw({0: book}, [GROUP], *share)
    return book.asked


def test_all_rows_get_a_batch_before_any_gets_the_next():
    rows = [(row, first) for first in (FIRST, SECOND, THIRD) for row in GROUP.rows]
    assert asked(0, 1, math.inf) == rows


def test_parts_share_the_batches():
    parts = [asked(part, 2, math.inf) for part in (0, 1)]
    assert sorted(parts[0] + parts[1]) == sorted(asked(0, 1, math.inf))


def test_no_batch_begins_after_the_time_is_up():
    assert asked(0, 1, -1.0) == []


def test_a_shorter_group_stops_at_its_own_number():
    book = Book()
    short = replace(GROUP, rows={NONE: Row(None)}, samples=10)
    draw({0: book}, [short, replace(GROUP, samples=20)], 0, 1, math.inf)
    assert [first for _, first in book.asked] == [FIRST] * 4 + [SECOND] * 3


def test_judges_of_another_seed_see_only_their_own_groups():
    shipped, other = Book(), Book()
    draw({0: shipped, 1: other}, [GROUP, replace(GROUP, rows={"a": Row({})}, judges=1)], 0, 1, math.inf)
    assert len(shipped.asked) == 9
    assert other.asked == [("a", first) for first in (FIRST, SECOND, THIRD)]


def test_prompts_may_be_of_other_scenes_than_the_targets(monkeypatch):
    monkeypatch.setattr(dag_pictures, "conditioning", lambda clip, texts: texts)
    drawings = object.__new__(Drawings)
    drawings.clip = None
    group = replace(GROUP, captions=True, prompts_after=50)

    assert drawings.prompts(group, SECOND) == [sample_scene(seed).caption for seed in range(160, 170)]
    assert group.prompt_seeds[10] == 160


@pytest.fixture
def judges(tmp_path):
    """Judges of a work folder, without networks: a row's folder is its name."""
    drawings = object.__new__(Drawings)
    drawings.folder = lambda group, name: tmp_path / name
    found = object.__new__(Judges)
    found.drawings = drawings
    return found


def have(judges, row, *firsts):
    for first in firsts:
        save(judges.drawings.path(GROUP, row, first), pictures=torch.full((1,), first))


def test_a_table_has_as_many_pictures_as_every_row_that_has_begun(judges):
    have(judges, NONE, FIRST, SECOND, THIRD)
    have(judges, "b", FIRST, SECOND)

    found = as_far_as_drawn(judges, GROUP)

    assert (list(found.rows), found.samples) == ([NONE, "b"], 20)


def test_a_gap_ends_a_row_and_there_is_no_table_without_a_baseline(judges):
    have(judges, "a", FIRST, THIRD)
    assert judges.drawn(GROUP, "a") == 10
    assert judges.drawn(replace(GROUP, samples=7), "a") == 7
    assert as_far_as_drawn(judges, GROUP).samples == 0


def test_a_drawn_batch_is_read_from_its_file(judges):
    have(judges, "a", SECOND)  # drawing would need a model, which there is not
    assert judges.drawings.draw(GROUP, "a", SECOND)["pictures"].tolist() == [SECOND]


def seen(count, kinds=3, **given):
    generator = torch.Generator().manual_seed(5)
    maps = torch.rand(count, 1, 32, 32, generator=generator)
    features = torch.rand(count, 4, generator=generator)
    nothing = torch.zeros(count)
    values = {
        "depth": maps,
        "surfaces": torch.zeros(count, 9, 32, 32),
        "features": features,
        "objects": torch.full((count, kinds), 0.5),
        "head": maps,
        "consistency": nothing,
        "prior": nothing,
    }
    return Seen(**(values | given))


def test_files_of_a_folder_take_the_place_of_the_demo_weights(tmp_path):
    (folder := tmp_path / "weaker").mkdir()
    weights = load_file(demo.WEIGHTS / demo.UNET_FILE)
    save_file({name: weight * 0.5 for name, weight in weights.items()}, folder / demo.UNET_FILE)

    usual, weaker = Drawings(tmp_path), Drawings(tmp_path, weights=folder)

    sums = [sum(p.abs().sum() for p in d.model.model.diffusion_model.parameters()) for d in (usual, weaker)]
    torch.testing.assert_close(sums[1], 0.5 * sums[0])
    assert weaker.checksums["depth_head"] == usual.checksums["depth_head"]
    assert weaker.folder(GROUP, NONE) != usual.folder(GROUP, NONE)


def test_figures_of_objects_are_paired():
    baseline, reference = seen(12), seen(12)
    better = seen(12, objects=baseline.objects + torch.tensor([0.1, 0.0, -0.2]))
    shown = torch.tensor([[1.0, 1.0, 0.0]]).expand(12, -1), torch.zeros(12, dtype=torch.long)

    plain, guided = (of_row(s, baseline, reference, reference.depth, shown, 4) for s in (baseline, better))

    sure, main = (guided[name].value - plain[name].value for name in ("sure of objects", "main object"))
    assert sure == pytest.approx(0.05)
    assert main == 1.0
    assert (guided["sure of objects"].resampled - plain["sure of objects"].resampled).std() < 1e-6
    assert plain["AbsRel to the target"].value == pytest.approx(0, abs=1e-5)
    assert plain["dFID"].value == pytest.approx(0, abs=1e-6)


def test_what_chooses_a_target_never_reports_it():
    drawn = {
        command: {group.seeds for group in of().values()} for command, of in dag_experiment.GROUPS.items()
    }
    tuning = {"sweep", "screen"}
    assert drawn.pop("objects") == {seeds.REPORTING, seeds.CONFIRMING}
    assert drawn == {c: {seeds.TUNING if c in tuning else seeds.REPORTING} for c in drawn}
