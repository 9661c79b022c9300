"""reid/tracking.py: metrics.jsonl line by line, an offline W&B run read back, and W&B failing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wandb
from PIL import Image

from reid.tracking import Tracker, keep_steps_before


@pytest.fixture(autouse=True)
def _no_wandb_of_the_user(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))


def make_tracker(folder: Path, **changes) -> Tracker:
    knobs = {
        "active": True,
        "mode": "off",
        "project": "tests",
        "name": "mine",
        "job_type": "train",
        "config": {"loss": {"w1": 0.1}},
    }
    return Tracker(folder, **{**knobs, **changes})


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_line_a_log_step(tmp_path):
    tracker = make_tracker(tmp_path)
    tracker.log(0, {"train/loss": 2.5, "train/lr": 1e-7})
    tracker.log(10, {"train/loss": 0.1 + 0.2})
    tracker.finish()
    assert lines_of(tmp_path) == [
        {"step": 0, "train/loss": 2.5, "train/lr": 1e-7},
        {"step": 10, "train/loss": 0.1 + 0.2},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]  # mode off starts nothing


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    tracker = make_tracker(tmp_path)
    tracker.log(3, {"train/loss": 1.0})
    assert lines_of(tmp_path) == [{"step": 3, "train/loss": 1.0}]


def test_other_ranks_write_nothing(tmp_path):
    tracker = make_tracker(tmp_path, active=False, mode="offline")
    tracker.log(0, {"train/loss": 1.0})
    tracker.log_table(0, "table", ["a"], [[1]])
    tracker.summarize({"eval/best_mAP": 1.0})
    tracker.finish()
    assert list(tmp_path.iterdir()) == []


def test_the_evaluation_leaves_the_lines_of_the_training_alone(tmp_path):
    make_tracker(tmp_path).log(0, {"train/loss": 1.0})
    make_tracker(tmp_path, job_type="evaluate").log(0, {"eval/x/image/mAP": 0.5})
    assert lines_of(tmp_path) == [{"step": 0, "train/loss": 1.0}]


def test_a_resumed_run_writes_the_later_lines_anew(tmp_path):
    first = make_tracker(tmp_path)
    for step in (0, 10, 20, 30):
        first.log(step, {"train/loss": step})
    second = make_tracker(tmp_path, resume_step=20)
    second.log(20, {"train/loss": -1})
    assert [(line["step"], line["train/loss"]) for line in lines_of(tmp_path)] == [(0, 0), (10, 10), (20, -1)]


def test_a_new_run_starts_with_no_lines(tmp_path):
    make_tracker(tmp_path).log(0, {"train/loss": 1.0})
    make_tracker(tmp_path).log(0, {"train/loss": 2.0})
    assert lines_of(tmp_path) == [{"step": 0, "train/loss": 2.0}]


@pytest.mark.parametrize("half", ["", '{"step": 15, "trai', '{"step": 15}', '{"st'])
def test_a_half_written_last_line_is_dropped(tmp_path, half):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5}\n{"step": 9}\n{"step": 10}\n' + half)
    keep_steps_before(path, 10)
    assert path.read_text() == '{"step": 5}\n{"step": 9}\n'


def test_a_whole_last_line_without_its_newline_is_kept_and_ended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5}\n{"step": 9}')
    keep_steps_before(path, 10)
    assert path.read_text() == '{"step": 5}\n{"step": 9}\n'


def test_no_lines_yet(tmp_path):
    keep_steps_before(tmp_path / "metrics.jsonl", 10)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.timeout(120)
def test_an_offline_run_is_read_back(tmp_path, capfd):
    tracker = make_tracker(tmp_path, mode="offline")
    tracker.log(0, {"train/loss": 2.5})
    tracker.log(10, {"train/loss": 0.5, "eval/image/mAP": 0.25})
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(tmp_path / "picture.png")
    tracker.log_pictures(10, {"pictures/one": tmp_path / "picture.png"})
    tracker.log_table(10, "tables/one", ["model", "mAP"], [["trained", 0.25]])
    tracker.summarize({"eval/best_mAP": 0.75})
    tracker.finish()
    assert "warning" not in capfd.readouterr().err
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    program = Path(sys.executable).with_name("wandb")
    command = [str(program), "leet", "inspect", "--json", str(file)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    records = [json.loads(line) for line in output.splitlines()]
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    assert (run["project"], run["display_name"], run["run_group"], run["job_type"]) == (
        "tests",
        "mine",
        "mine",
        "train",
    )
    assert run["config"]["update"]["loss"] == {"w1": 0.1}
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [(item["train/step"], item["train/loss"]) for item in history if "train/loss" in item] == [
        (0, 2.5),
        (10, 0.5),
    ]
    assert [item["eval/image/mAP"] for item in history if "eval/image/mAP" in item] == [0.25]
    assert any("pictures/one" in str(item) for item in history) and any("tables/one" in str(item) for item in history)
    summary = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    assert summary["eval/best_mAP"] == 0.75
    assert any(record["metric"].get("name") == "train/step" for record in records if record["type"] == "metric")
    globs = {record["metric"].get("glob_name"): record["metric"] for record in records if record["type"] == "metric"}
    assert globs["train/*"]["step_metric"] == globs["eval/*"]["step_metric"] == "train/step"
    assert len(lines_of(tmp_path)) == 2


def test_the_evaluation_is_a_run_of_its_own_in_the_same_group(tmp_path, monkeypatch):
    started = {}

    def init(**knobs):
        started.update(knobs)
        raise RuntimeError("seen enough")

    monkeypatch.setattr(wandb, "init", init)
    make_tracker(tmp_path, mode="online", job_type="evaluate")
    assert (started["name"], started["group"], started["job_type"]) == ("mine-evaluate", "mine", "evaluate")
    assert (started["mode"], started["dir"]) == ("online", str(tmp_path))


def test_wandb_that_cannot_start_warns_and_goes_on(tmp_path, monkeypatch, capsys):
    def init(**knobs):
        raise wandb.errors.CommError("no route to host")

    monkeypatch.setattr(wandb, "init", init)
    tracker = make_tracker(tmp_path, mode="online")
    tracker.log(0, {"train/loss": 1.0})
    tracker.summarize({"eval/best_mAP": 1.0})
    tracker.finish()
    assert lines_of(tmp_path) == [{"step": 0, "train/loss": 1.0}]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning == "warning: W&B logging is off from here on: CommError: no route to host"


class _BreakingRun:
    def __init__(self, logs: int) -> None:
        self.logs, self.calls = logs, 0

    def define_metric(self, *args, **knobs) -> None:
        pass

    def log(self, values) -> None:
        self.calls += 1
        if self.calls > self.logs:
            raise OSError("disk full")


def test_wandb_that_fails_later_warns_once_and_goes_on(tmp_path, monkeypatch, capsys):
    run = _BreakingRun(logs=1)
    monkeypatch.setattr(wandb, "init", lambda **knobs: run)
    tracker = make_tracker(tmp_path, mode="offline")
    for step in range(4):
        tracker.log(step, {"train/loss": 1.0})
    tracker.log_pictures(4, {"x": tmp_path / "nowhere.png"})
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 1, 2, 3]
    assert run.calls == 2
    assert capsys.readouterr().err.count("W&B logging is off from here on: OSError: disk full") == 1
