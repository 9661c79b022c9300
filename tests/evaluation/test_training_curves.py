"""reid/evaluation/training_curves.py: the panels that a metrics.jsonl gives, over epochs."""

import json

import numpy as np
import pytest

from reid.config import LossConfig
from reid.evaluation.training_curves import read_curves

WEIGHTS = LossConfig().weights | {"triplet": 0.5, "center": 0.0005}


def write(path, entries, rest=""):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + rest)
    return path


def entries(first_epoch, steps=4, epochs=3):
    """A line at every third step and at the last of each epoch, and an evaluation after it."""
    for epoch in range(epochs):
        for step in range(epoch * steps, (epoch + 1) * steps):
            if step % 3 == 2 or step % steps == steps - 1:
                yield {
                    "step": step, "epoch": first_epoch + epoch, "train/loss": 9.0 - step, "train/triplet": 4.0,
                    "train/center": 100.0, "train/lr": 10.0**-epoch, "train/hinge_active": 0.25,
                }  # fmt: skip
        yield {"step": step, "eval/image/mAP": 0.1 * epoch, "eval/one/image/mAP": 0.2}


@pytest.mark.parametrize("first_epoch", [0, 1])
def test_panels_over_epochs(tmp_path, first_epoch):
    curves = read_curves(write(tmp_path / "m.jsonl", entries(first_epoch)), WEIGHTS)
    losses, rate, hinges, aims = curves.panels
    assert not curves.note and all((panel.x_label, panel.x_end) == ("epoch", 3) for panel in curves.panels)
    assert {name: line[1][0] for name, line in losses.lines.items()} == {
        "loss": 7.0, "triplet × 0.5": 2.0, "center × 0.0005": pytest.approx(0.05),
    }  # fmt: skip
    assert losses.lines["loss"][0].tolist() == [0.75, 1, 1.5, 2, 2.25, 3]
    assert rate.log and rate.lines["lr"][1].tolist() == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert set(hinges.lines[""][1]) == {25.0}
    x, y = aims.lines["image"]
    assert x.tolist() == [1, 2, 3] and y == pytest.approx([0, 10, 20]) and "one/image" in aims.lines


def test_lost_and_damaged_lines_leave_the_epochs_of_the_others(tmp_path):
    lines = list(entries(first_epoch=1))
    x = read_curves(write(tmp_path / "m.jsonl", lines[3:]), WEIGHTS).panels[0].lines["loss"][0]
    assert x.tolist() == [1.5, 2, 2.25, 3]
    damaged = [entry | {"epoch": None} if entry["step"] == 5 else entry for entry in entries(first_epoch=0)]
    assert read_curves(write(tmp_path / "m.jsonl", damaged), WEIGHTS).panels[0].x_end == 3


def test_what_is_not_there_is_left_out(tmp_path):
    few = [{"step": step, "train/loss": 1.0, "train/lr": 0.1, "note": "text", "train/triplet": None} for step in (4, 0)]
    curves = read_curves(write(tmp_path / "m.jsonl", few, "{broken\n"), WEIGHTS)
    assert [panel.title for panel in curves.panels] == ["Loss and its terms", "Learning rate"]
    assert [*curves.panels[0].lines] == ["loss"] and curves.panels[0].x_label == "step"
    assert np.array_equal(curves.panels[0].lines["loss"][0], [0, 4]) and not curves.panels[1].log
    assert "1 damaged lines are left out, the first of them line 3" in curves.note


def test_without_metrics_there_is_a_reason(tmp_path):
    assert "nowhere.jsonl: No such file" in read_curves(tmp_path / "nowhere.jsonl", WEIGHTS).note
    for content in ([], [{"step": 1, "epoch": 0}], [{"step": -1, "epoch": 0, "train/lr": 10**400}]):
        curves = read_curves(write(tmp_path / "m.jsonl", content), WEIGHTS)
        assert not curves.panels and "holds no metric of a training" in curves.note
