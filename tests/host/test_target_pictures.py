"""experiments/target_pictures.py: seeds that choose never report, kept pictures are those of their row."""

import pytest
import torch

from inner_guidance.demo import model as demo
from inner_guidance.experiments import latent_head, seeds, target_pictures
from inner_guidance.experiments import transformer_depth_guidance as transformer
from inner_guidance.experiments.dag_rows import EQUAL_COST, NONE, only
from inner_guidance.experiments.target_pictures import Drawn, Row, Targets, kept


def test_strengths_are_chosen_on_tuning_seeds():
    assert transformer.GROUPS == {
        "Tuning seeds": (transformer.SWEPT, seeds.TUNING),
        "Reporting seeds": (transformer.REPORTED, seeds.REPORTING),
    }
    for rows in (latent_head.ROWS, transformer.SWEPT, transformer.REPORTED):
        assert next(iter(rows)) == NONE
        assert rows[NONE] == Row(None)
    assert transformer.REPORTED[EQUAL_COST].head is None


def test_kept_pictures_are_those_of_a_row_and_its_seeds(tmp_path, monkeypatch):
    drawings = []

    def draw(*drawing):
        drawings.append(drawing)
        return Drawn(torch.full((1, 2, 2, 3), len(drawings), dtype=torch.uint8), float(len(drawings)))

    monkeypatch.setattr(target_pictures, "draw", draw)
    head = demo.LATENT_HEAD_FILE
    targets, others = (Targets(one[:16], (), ()) for one in (seeds.TUNING, seeds.REPORTING))
    drawn = [
        ("transformer", Row(None), targets),
        ("transformer", Row(None), others),
        ("transformer", Row(None, steps=17), targets),
        ("transformer", Row(head, only("target")), targets),
        ("transformer", Row(head, only("target", 0.5)), targets),
        (demo.UNET, Row(None), targets),
    ]

    for _ in range(2):
        for number, drawing in enumerate(drawn, start=1):
            found = kept(tmp_path, *drawing)
            assert found.seconds == pytest.approx(number)
            assert found.pictures.unique().tolist() == [number]

    assert drawings == drawn
