"""Sweeps without a server: files checked, runs proposed, made, stopped, resumed, and what they found drawn."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import matplotlib.image
import numpy as np
import pytest
import yaml

from reid.config import Config, parse
from reid.data.joined import Joined
from reid.data.manifest import load_manifest, save_manifest
from reid.files import hold
from reid.runs.logged import METRICS
from reid.runs.sweep_names import name_knobs
from reid.runs.tracking import keep_steps_before
from reid.sweeps import __main__ as program
from reid.sweeps.folder import SweepFolder, check_run, claim_folder
from reid.sweeps.page import render_page
from reid.sweeps.spec import Run, Sweep, corners, propose, read_history, read_sweep, should_stop
from reid.sweeps.table import (
    choose_axes,
    draw_heat_map,
    find_best,
    format_csv,
    format_settings,
    group_seeds,
    name_metric,
)
from tests.support.drawn import draw_dataset
from tests.support.programs import ROOT, TIMEOUT_S, Program

PROGRAM = ROOT / "launch" / "sweep.py"
TINY = [
    "--data.height=32", "--data.width=16", "--batch.identities=4", "--batch.streams=2", "--optim.milestones=[1]",
    "--optim.warmup_epochs=1", "--batch.steps_per_epoch=2", "--track.every_steps=1", "--track.wandb=off",
    "--data.workers=0",
]  # fmt: skip


def write_sweep(folder: Path, **changes: Any) -> Path:
    document = {
        "method": "grid",
        "metric": {"name": "eval/best_mAP", "goal": "maximize"},
        "parameters": {"loss.w1": {"values": [0.1, 0.3]}, "seed": {"values": [0, 1]}},
        "command": ["${env}", sys.executable, "train.py", "--config=configs/quickstart.yaml", "${args}"],
        **changes,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in document.items() if value is not None}))
    return path


def main_says(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    try:
        status = program.main([str(word) for word in words])
    except SystemExit as end:
        status = int(end.code or 0)
    said = capsys.readouterr()
    return status, said.out + said.err


def make_run(number: int, knobs: dict[str, Any], *history: float, state: str = "finished") -> Run:
    return Run(number, knobs, state, history)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_sweeps_are_sound(path: Path) -> None:
    sweep = read_sweep(path)
    program.check_sweep(sweep, [])
    assert {"loss.w1", "loss.margin", "seed"} == set(sweep.document["parameters"])
    assert (sweep.metric, sweep.document["metric"]["goal"]) == ("eval/best_mAP", "maximize")
    assert sweep.launcher[1:4] == ("launch", "--config_file", "launch/cpu.yaml")
    assert not any("$" in word for word in (*sweep.launcher, *sweep.flags))


def test_a_grid_comes_seed_by_seed() -> None:
    sweep = read_sweep(ROOT / "configs" / "sweeps" / "w1_margin.yaml")
    first = propose(sweep, [], 16)
    assert {knobs["seed"] for knobs in first} == {0}
    assert len({(knobs["loss.w1"], knobs["loss.margin"]) for knobs in first}) == 16
    rest = propose(sweep, [make_run(i, knobs) for i, knobs in enumerate(first)], 100)
    assert len(rest) == 32 and [knobs["seed"] for knobs in rest] == [1] * 16 + [2] * 16
    assert not any(knobs in first for knobs in rest)


def test_bayes_listens_to_results() -> None:
    """Twelve results that grow only with w1: the search proposes large w1."""
    sweep = read_sweep(ROOT / "configs" / "sweeps" / "w1_margin_bayes.yaml")
    rng = np.random.default_rng(0)
    points = [{"loss.w1": w, "loss.margin": 0.8 + m, "seed": i % 3}
              for i, (w, m) in enumerate(zip(rng.uniform(0, 0.8, 12), rng.uniform(0, 1, 12), strict=True))]  # fmt: skip

    def mean_of_proposals(sign: int) -> float:
        np.random.seed(0)  # the engine draws from the global generator
        runs = [make_run(i, knobs, 0.5 + sign * 0.8 * (knobs["loss.w1"] - 0.4)) for i, knobs in enumerate(points)]
        proposed = [propose(sweep, runs, 1)[0] for _ in range(4)]
        assert all(0 <= knobs["loss.w1"] <= 0.8 and 0.8 <= knobs["loss.margin"] <= 1.8 for knobs in proposed)
        assert all(knobs["seed"] in (0, 1, 2) for knobs in proposed)
        assert all(type(value) in (float, int) for knobs in proposed for value in knobs.values())
        return float(np.mean([knobs["loss.w1"] for knobs in proposed]))

    assert mean_of_proposals(1) > 0.6 and mean_of_proposals(-1) < 0.2


def test_hyperband_ends_a_run_that_should_stop() -> None:
    sweep = read_sweep(ROOT / "configs" / "sweeps" / "w1_margin_bayes.yaml")
    good = [make_run(i, {"loss.w1": 0.1}, 0.5, 0.6, 0.7, 0.8) for i in range(3)]
    assert should_stop(sweep, [*good, make_run(3, {}, 0.1, 0.1, 0.2, 0.2, state="running")], 3)
    assert not should_stop(sweep, [*good, make_run(3, {}, 0.6, 0.7, 0.9, 0.9, state="running")], 3)
    assert not should_stop(sweep, [*good, make_run(3, {}, 0.1, 0.1, state="running")], 3)  # too early to tell
    grid = read_sweep(ROOT / "configs" / "sweeps" / "w1_margin.yaml")
    assert not should_stop(grid, [*good, make_run(3, {}, 0.1, 0.1, 0.1, 0.1, state="running")], 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"loss.marign": {"values": [1.0]}}}, "marign'. The nearest known knob is --loss.margin"),
        ({"parameters": {"loss": {"parameters": {"w1": {"values": [0.1]}}}}}, "name each knob in full with a dot"),
        ({"parameters": {"loss.marign": {"distribution": "normal"}}}, "The nearest known knob is --loss.margin"),
        ({"parameters": {"config": {"values": ["configs/quickstart.yaml"]}}}, "'config' cannot be swept"),
        ({"parameters": {"loss.w1": {"distribution": "log_uniform", "min": -3, "max": 0}}}, "log_uniform_values"),
        ({"parameters": {"loss.margin": {"values": [1.0, 0.0]}}}, "loss.margin = 0.0 must be greater than 0"),
        ({"parameters": {"loss.w1": {"min": 0.0, "max": 1.5}}}, "loss.w1 = 1.5 lies outside [0, 1]"),
        ({"parameters": {"loss.w1": {"values": ["much"]}}}, "loss.w1"),
        ({"parameters": []}, "parameters = []"),
        ({"parameters": {}}, "`parameters` is empty"),
        ({"parameters": {"": {"values": [1]}}}, "unknown knob ''"),
        ({"parameters": {"loss w1": {"values": [1]}}}, "unknown knob 'loss w1'. The nearest known knob is --loss.w1"),
        ({"parameters": {"loss.w1": [0.1]}}, "'loss.w1' = [0.1]"),
        ({"parameters": {"loss.w1": {"values": []}}}, "'loss.w1' has no values"),
        ({"parameters": {"seed": {"values": [0, None]}}}, "seed = None"),
        ({"parameters": {"model.encoder": {"values": ["a\n--b"]}}}, "more than one line"),
        ({"parameters": {name: {"values": [0.1] * 99} for name in ("loss.w1", "loss.w2", "loss.margin")}}, "970,299"),
        ({"metric": "eval/best_mAP"}, "metric = eval/best_mAP"),
        ({"metric": {"name": "train/ctl", "goal": "minimize"}}, "train/ctl is logged only with --loss.ctl above 0"),
        ({"metric": {"name": "train/d_ap", "goal": "minimize"}, "parameters": {"loss.mctl": {"values": [1.0, 0.0]}}},
         "train/d_ap is logged only with --loss.mctl or --loss.ctl above 0"),
        ({"command": "train.py ${args}"}, "command = train.py ${args}"),
        ({"command": [["train.py"], "${args}"]}, "['train.py']"),
        ({"program": 3}, "program = 3"),
        ({"metric": {"name": "eval/mAP", "goal": "maximize"}}, "'eval/mAP' is never logged; the nearest that is:"),
        ({"metric": {"name": "eval/mall/best_mAP", "goal": "maximize"}}, "never logged; the nearest that is: eval/bes"),
        ({"metric": {"name": "eval/val/mAP", "goal": "maximize"}}, "--data.val_identities"),
        ({"metric": None}, "metric.name = '' is never logged"),
        ({"method": "gird"}, "'gird' is not one of"),
        ({"parameters": {"loss.w1": {"valuess": [1]}}}, "loss.w1"),
        ({"command": None}, "`command` must name train.py and ${args}"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 2},
          "parameters": {"eval.every_epochs": {"values": [0]}}}, "--eval.every_epochs=1"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_before_any_run(tmp_path, capsys, changes, message) -> None:
    status, said = main_says(capsys, write_sweep(tmp_path, **changes), "--out", tmp_path / "out")
    assert status == 2 and message in said and said.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_other_errors_name_their_fix(tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    assert main_says(capsys, tmp_path / "none.yaml", "--out", out)[0] == 2
    (tmp_path / "list.yaml").write_text("- method: grid")
    assert "list.yaml: cannot be read as a sweep" in main_says(capsys, tmp_path / "list.yaml", "--out", out)[1]
    bayes = write_sweep(tmp_path, method="bayes")
    assert "give --runs N" in main_says(capsys, bayes, "--out", tmp_path / "b")[1]
    said = main_says(capsys, bayes, "--out", tmp_path / "b", "--slurm", "--runs=2")[1]
    assert "with method bayes a run needs the results" in said
    grid = write_sweep(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "sbatch is not installed here" in main_says(capsys, grid, "--out", out, "--slurm")[1]
    assert "holds another sweep" in main_says(capsys, grid, "--out", out, "--slurm", "--", "--loss.margin=2")[1]
    assert "no sweep.yaml" in main_says(capsys, "--collect", tmp_path / "nowhere")[1]


def test_null_is_a_value_of_a_sweep(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(program, "run_here", lambda folder, total: 0)
    for value in (None, "None"):  # as YAML reads null, and as an agent of W&B writes it
        sweep, out = write_sweep(tmp_path, parameters={"loss.w2": {"values": [value, 0.5]}}), tmp_path / repr(value)
        assert main_says(capsys, sweep, "--out", out)[0] == 0
        assert [parse(Config, SweepFolder(out).flags(number)).loss.w2 for number in (0, 1)] == [None, 0.5]


def test_a_value_is_checked_without_reading_the_configuration_again(tmp_path, monkeypatch) -> None:
    full = []
    monkeypatch.setattr(program, "check_run", lambda *given: full.append(given) or check_run(*given))
    values = [number / 100 for number in range(100)]
    sweep = read_sweep(write_sweep(tmp_path, parameters={"loss.w1": {"values": values}, "seed": {"values": [0, 1]}}))
    program.check_sweep(sweep, [])
    assert len(full) == 1
    with pytest.raises(ValueError, match=r"loss\.w1 = 1\.5 lies outside"):
        program.check_sweep(read_sweep(write_sweep(tmp_path, parameters={"loss.w1": {"values": [*values, 1.5]}})), [])


RAW = ["--loss.space=raw"]  # where a margin may be 5


def test_runs_are_named_by_their_knobs_and_grouped_by_their_sweep(tmp_path) -> None:
    parameters = {"loss.margin": {"values": [5.0, 2.0]}, "loss.w1": {"values": [0.1, 0.3]}, "seed": {"values": [0, 1]},
                  "optim.epochs": {"value": 3}}  # fmt: skip
    folder = claim_folder(tmp_path / "margins", read_sweep(write_sweep(tmp_path, parameters=parameters)), RAW)
    for knobs in propose(folder.sweep, [], 8):
        folder.add(knobs)
    runs = [parse(Config, folder.flags(number)) for number in range(8)]
    assert [run.name for run in runs] == [f"run-{number:04d}" for number in range(8)]
    names = [run.track.name for run in runs]
    assert names[0] == "m5-w0.1-s0" and len(set(names)) == 8
    assert {run.track.group for run in runs} == {"margins"}
    named = claim_folder(tmp_path / "out", read_sweep(write_sweep(tmp_path, name="which w1")), ["--track.group=mine"])
    named.add({"loss.w1": 0.1, "seed": 0})
    assert parse(Config, named.flags(0)).track.group == "mine" and "--track.group=which w1" in named.flags(0)


@pytest.mark.parametrize(
    ("knobs", "name"),
    [
        ({"loss.w1": 0.1, "loss.w2": 0.9}, "w1=0.1-w2=0.9"),
        ({"loss.margin": 1.414, "model.last_stride": 1, "optim.lr": 3.5e-4}, "m1.414-la1-lr0.00035"),
        ({"loss.margin": 2, "model.margins": 3}, "loss.margin2-margins3"),
        ({"model.encoder": "timm/vit small", "loss.w2": None, "optim.nesterov": True}, "etimm_vit_small-wnull-ntrue"),
        ({"optim.milestones": [4, 7]}, "m4_7"),
        ({"data.root": "x" * 200}, "r" + "x" * 127),
        ({}, ""),
    ],
)
def test_short_names_tell_knobs_apart(knobs: dict[str, Any], name: str) -> None:
    assert name_knobs(knobs) == name


def test_every_logged_metric_may_be_the_aim(tmp_path) -> None:
    for name in METRICS:
        assert read_sweep(write_sweep(tmp_path, metric={"name": name, "goal": "maximize"})).metric == name


@pytest.mark.parametrize(
    "line", ["3", "[1]", "null", '"text"', "{}", '{"step": null}', "nonsense", "\udce9", "[" * 9999]
)
def test_a_damaged_line_of_a_log_is_named(tmp_path, capsys, line) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "m": 0.5}}\n{line}\n{{"step": 3, "m": 0.2}}\n', errors="surrogateescape")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is damaged"):
        read_history(tmp_path, "m")
    keep_steps_before(path, 9)
    assert read_history(tmp_path, "m") == (0.5, 0.2)
    assert "line 2" in capsys.readouterr().err


@pytest.mark.parametrize("value", [None, "0.5", True, [0.5], math.nan, math.inf])
def test_a_metric_that_is_no_number_is_named(tmp_path, value) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "m": value}) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: m = "):
        read_history(tmp_path, "m")


@pytest.mark.parametrize(
    ("name", "content"),
    [("plan.json", "[]"), ("plan.json", "{"), ("plan.json", '{"flags": [], "runs": [3]}'), ("state/0", "done"),
     ("state/0", "\udce9"), ("sweep.yaml", "[]")],
)  # fmt: skip
def test_a_damaged_folder_of_a_sweep_names_its_file(tmp_path, name, content) -> None:
    sweep = read_sweep(write_sweep(tmp_path))
    folder = claim_folder(tmp_path / "out", sweep, [])
    folder.add({"loss.w1": 0.1, "seed": 0})
    (tmp_path / "out" / name).write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=re.escape(name)):
        SweepFolder(tmp_path / "out").collect()


def test_corners_hold_every_value() -> None:
    document = {"parameters": {"a": {"values": [1, 2, 3]}, "b": {"min": 0.5, "max": 4.0}, "c": {"value": 7},
                               "d": {"distribution": "log_normal", "mu": 0.0, "sigma": 2.0}}}  # fmt: skip
    found = corners(Sweep(Path("x"), document))
    assert found[0] == {"a": 1, "b": 0.5, "c": 7, "d": 1.0}
    assert {knobs["a"] for knobs in found} == {1, 2, 3} and {knobs["b"] for knobs in found} == {0.5, 4.0}


def test_a_half_written_line_is_left_for_later(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "m": 0.5}\n{"step": 2}\n{"step": 3, "m": 0.25}\n{"step": 4, "m"'
    )
    assert read_history(tmp_path, "m") == (0.5, 0.25)
    assert read_history(tmp_path / "none", "m") == ()


def test_words_of_the_command_are_filled_in_as_by_an_agent(tmp_path, monkeypatch) -> None:
    words = ["${env}", "${interpreter}", "${program}", "--data.root=${envvar:DATA}", "${args}",
             "--stop_file=${envvar:STOP_FILE}"]  # fmt: skip
    path = write_sweep(tmp_path, program="train.py", command=words)
    with pytest.raises(ValueError, match=r"envvar:DATA.*not filled in here"):
        read_sweep(path)
    monkeypatch.setenv("DATA", "data/mine")
    sweep = read_sweep(path)
    assert (sweep.launcher, sweep.flags) == ((sys.executable,), ("--data.root=data/mine",))
    with pytest.raises(ValueError, match=r"args_json.*not filled in here"):
        read_sweep(write_sweep(tmp_path, command=["python", "train.py", "${args_json}", "${args}"]))


def test_a_file_is_checked_and_nothing_started(tmp_path: Path, capsys) -> None:
    status, said = main_says(capsys, write_sweep(tmp_path), "--check", "--out", tmp_path / "out")
    assert status == 0 and "knobs, values and metric are known" in said and not (tmp_path / "out").exists()
    unknown = write_sweep(tmp_path, parameters={"loss.w11": {"values": [0.1]}})
    assert main_says(capsys, unknown, "--check")[0] == 2


def test_a_sweep_that_another_process_makes_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir()
    with hold(tmp_path / "out" / ".lock"):
        status, said = main_says(capsys, write_sweep(tmp_path), "--out", tmp_path / "out")
    assert status == 2 and "is at work on this sweep" in said


def test_a_folder_of_the_first_version_is_continued(tmp_path: Path) -> None:
    """The files as written before plans were kept in memory: one run is finished, one planned without a state."""
    out, knobs = tmp_path / "out", [{"loss.w1": 0.1, "seed": 0}, {"loss.w1": 0.3, "seed": 0}]
    for name in ("flags", "state", "run-0000"):
        (out / name).mkdir(parents=True)
    sweep = read_sweep(write_sweep(tmp_path))
    (out / "sweep.yaml").write_text(yaml.safe_dump(sweep.document, sort_keys=False))
    (out / "plan.json").write_text(json.dumps({"flags": ["--seed=9"], "runs": knobs}, indent=1) + "\n")
    (out / "state" / "0").write_text("finished\n")
    (out / "run-0000" / "metrics.jsonl").write_text('{"step": 1, "eval/best_mAP": 0.5}\n')
    folder = claim_folder(out, sweep, ["--seed=9"])
    assert folder.runs() == [make_run(0, knobs[0], 0.5), make_run(1, knobs[1], state="planned")]
    for more in propose(sweep, folder.runs(), 9):
        folder.add(more)
    assert [run.knobs["seed"] for run in SweepFolder(out).runs()] == [0, 0, 1, 1]
    assert folder.flags(3)[-6:-3] == ["--seed=9", "--loss.w1=0.3", "--seed=1"]


def test_a_program_that_is_not_there_and_a_metric_that_never_comes(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    before = {number: signal.getsignal(number) for number in program.SIGNALS}
    gone = write_sweep(
        tmp_path, command=["nowhere/accelerate", "train.py", "--config=configs/quickstart.yaml", "${args}"]
    )
    status, said = main_says(capsys, gone, "--out", tmp_path / "gone")
    assert status == 2 and "nowhere/accelerate: No such file" in said
    monkeypatch.setattr(program, "make_run", lambda folder, number, signals: folder.set_state(number, "finished"))
    status, said = main_says(capsys, write_sweep(tmp_path), "--out", tmp_path / "silent")
    for number, handler in before.items():
        signal.signal(number, handler)
    assert status == 2 and "run 0 finished without logging eval/best_mAP" in said


RUNS = [
    make_run(0, {"loss.w1": 0.1, "loss.margin": 2.0, "seed": 0}, 0.1, 0.5),
    make_run(1, {"loss.w1": 0.1, "loss.margin": 2.0, "seed": 1}, 0.7),
    make_run(2, {"loss.w1": 0.3, "loss.margin": 2.0, "seed": 0}, 0.9),
    make_run(3, {"loss.w1": 0.3, "loss.margin": 5.0, "seed": 0}, 0.2),
    make_run(4, {"loss.w1": 0.3, "loss.margin": 5.0, "seed": 1}, 0.99, state="failed"),
]


def test_settings_are_means_over_seeds() -> None:
    best, middle, worst = group_seeds(RUNS, maximizes=True)
    assert (best.knobs, best.mean, best.std, best.runs) == ({"loss.w1": 0.3, "loss.margin": 2.0}, 0.9, None, 1)
    assert middle.mean == pytest.approx(0.6) and middle.std == pytest.approx(math.sqrt(0.02)) and middle.runs == 2
    assert worst.mean == 0.2 and group_seeds(RUNS, maximizes=False)[0] == worst
    text = format_settings([best, middle, worst], "eval/best_mAP").splitlines()
    assert text[0].split() == ["loss.w1", "loss.margin", "eval/best_mAP", "std", "runs"]
    assert text[2].split() == ["0.1", "2.0", "0.6000", "0.1414", "2"]
    rows = list(csv.DictReader(format_csv(RUNS, "m").splitlines()))
    assert rows[1] == {"run": "1", "loss.w1": "0.1", "loss.margin": "2.0", "seed": "1", "state": "finished", "m": "0.7"}


def test_the_heat_map_is_bright_where_the_metric_is_high() -> None:
    runs = [make_run(0, {"a": x, "b": y, "seed": 0}, value)
            for (x, y), value in {(0, 0): 0.1, (1, 0): 0.2, (0, 1): 0.3, (1, 1): 0.9}.items()]  # fmt: skip
    settings = group_seeds(runs, maximizes=True)
    assert choose_axes(settings) == ("a", "b") and choose_axes(settings[:1]) is None
    drawn = draw_heat_map(settings, ("a", "b"), "m", maximizes=True)
    picture = matplotlib.image.imread(io.BytesIO(drawn), format="png")
    height, width = picture.shape[:2]
    corner = picture[int(0.22 * height), int(0.62 * width)]  # (1, 1): top right; viridis ends in yellow
    other = picture[int(0.8 * height), int(0.22 * width)]
    assert corner[:3].sum() > 1.7 and other[:3].sum() < 1.2
    with_null = [*runs, make_run(4, {"a": None, "b": 2, "c": [1], "seed": 0}, 0.5)]
    assert choose_axes(group_seeds(with_null, maximizes=True)) is None
    search = [make_run(i, {"a": i + 1.0, "b": 2.0**i}, 0.1 * i) for i in range(9)]
    assert draw_heat_map(group_seeds(search, maximizes=True), ("a", "b"), "m", True).startswith(b"\x89PNG")
    assert draw_heat_map(settings, ("a", "b"), "m", maximizes=False) != drawn  # another best cell
    for name, shown in (("eval/best_mAP", ("eval/best_mAP (%)", "12.3")), ("train/loss", ("train/loss", "0.1234"))):
        label, show = name_metric(name)
        assert (label, show(0.1234), show(None)) == (*shown, "-")


def test_the_page_has_the_best_setting_and_all_runs() -> None:
    settings, best = group_seeds(RUNS, maximizes=True), find_best(RUNS, maximizes=True)
    assert best is RUNS[2] and find_best(RUNS, maximizes=False) is RUNS[3] and find_best(RUNS[4:], True) is None
    page = "name", RUNS, settings, "eval/best_mAP", (best, Path("sweeps/x_y/run-0002")), None
    text = " ".join(re.sub(r"<[^>]*>", " ", render_page(*page)).split())
    assert "90.0 eval/best_mAP (%) of the best setting, mean of 1 run" in text
    assert "loss.w1 0.3 loss.margin 2.0" in text and "5 runs: 4 finished, 1 failed" in text
    assert "0.3 2.0 90.0 - 1 0.1 2.0 60.0 14.1 2" in text  # the best is first
    assert "1 0.1 2.0 1 finished 70.0" in text and "4 0.3 5.0 1 failed 99.0" in text
    assert "Best run: 2, eval/best_mAP (%) 90.0, in sweeps/ x_ y/ run-0002." in text
    assert "No run is finished yet." in render_page("name", RUNS[4:], [], "eval/best_mAP", None, None)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("drawn"), num_shards=4).root


class Training(Program):
    """What the sweep program starts and waits for, as it does a `subprocess.Popen`."""

    def __init__(self, command: list[str], log: IO[str]) -> None:
        assert command[:2] == [sys.executable, "train.py"]
        super().__init__(*command[1:])
        self.log = log

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self.log.write(self.said())

    def poll(self) -> int | None:
        return self.processes[0].exitcode

    def wait(self, timeout: float) -> None:
        self.processes[0].join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("train.py", timeout)

    @property
    def returncode(self) -> int | None:
        return self.poll()


@pytest.fixture
def _signals() -> Iterator[None]:
    """The sweep program's handlers end with the test."""
    before = {number: signal.getsignal(number) for number in program.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_metric_that_the_data_cannot_give_is_refused_before_any_run(tmp_path, shards, capsys, monkeypatch) -> None:
    monkeypatch.setattr(program, "run_here", lambda folder, total: 0)
    second = draw_dataset(tmp_path / "second", seed=7, num_shards=4).root
    labels = [dataset.label for dataset in Joined.load([str(shards), str(second)]).datasets]
    train_only = strip_test_set(shards, tmp_path / "train_only")

    def said(metric: str, *flags: object) -> tuple[int, str]:
        sweep = write_sweep(tmp_path, metric={"name": metric, "goal": "maximize"})
        return main_says(capsys, sweep, "--check", "--", *TINY, *flags)

    both = f"--data.root=[{shards},{second}]"
    for name in labels:
        assert said(f"eval/{name}/image/mAP", both)[0] == said(f"train/{name}/d_ap", both)[0] == 0
    for metric in ("eval/mall/image/mAP", "train/mall/d_ap"):
        status, text = said(metric, both)
        assert status == 2 and "no dataset is called mall" in text and labels[0] in text
    status, text = said("eval/mall/image/mAP", "--data.root=[nowhere,gone]")
    assert status == 0 and "note: " in text and "nowhere is not here" in text
    for metric in ("eval/best_mAP", "eval/image/mAP"):
        status, text = said(metric, f"--data.root={train_only}")
        assert status == 2 and "has no query and gallery" in text and "--data.val_identities" in text
    assert said("train/loss", f"--data.root={train_only}")[0] == 0
    assert said("eval/best_mAP", f"--data.root={train_only}", "--data.val_identities=4")[0] == 0
    assert said("eval/best_mAP", f"--data.root=[{train_only},{second}]")[0] == 0  # the other one has them


def strip_test_set(shards: Path, folder: Path) -> Path:
    """Write a manifest without query and gallery."""
    manifest = load_manifest(shards)
    folder.mkdir()
    save_manifest(replace(manifest, splits={"train": manifest.splits["train"]}), folder)
    return folder


@pytest.mark.usefixtures("_signals")
def test_a_sweep_is_made_interrupted_and_finished(tmp_path: Path, shards: Path, capsys, monkeypatch) -> None:
    """Two runs: one, then a stop in the second, then its rest."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(program, "start", Training)
    grid = {"loss.w1": {"values": [0.1, 0.3]}, "seed": {"values": [0]}}
    out, sweep = tmp_path / "out", write_sweep(tmp_path, parameters=grid)
    extra = ["--", *TINY, f"--data.root={shards}", "--optim.epochs=2"]
    status, said = main_says(capsys, sweep, "--runs=1", "--out", out, *extra)
    assert status == 0 and "1 runs: 1 finished" in said
    before = (out / "run-0000" / "metrics.jsonl").read_bytes()

    def stop_me(command: list[str], log: IO[str]) -> Training:
        os.kill(os.getpid(), signal.SIGTERM)
        return Training(command, log)

    with monkeypatch.context() as patch:
        patch.setattr(program, "start", stop_me)
        status, said = main_says(capsys, sweep, "--out", out, *extra)
    assert status == 75 and "the same command continues" in said
    assert (out / "state" / "1").read_text() in ("running\n", "finished\n")

    status, said = main_says(capsys, sweep, "--out", out, *extra)
    assert status == 0 and "2 runs: 2 finished" in said
    assert (out / "run-0000" / "metrics.jsonl").read_bytes() == before  # a finished run is unchanged
    rows = list(csv.DictReader((out / "runs.csv").read_text().splitlines()))
    assert [(row["loss.w1"], row["seed"]) for row in rows] == [("0.1", "0"), ("0.3", "0")]
    for row in rows:
        lines = [json.loads(line) for line in (out / f"run-{int(row['run']):04d}" / "metrics.jsonl").open()]
        assert float(row["eval/best_mAP"]) == lines[-1]["eval/best_mAP"]
        logged = {name for line in lines for name in line}
        assert logged <= {"step", "epoch", *METRICS}
        left = (
            "eval/val/",
            "train/ctl",
            "train/quadruplet",
            "data/",
            "train/circle",
            "train/contrastive",
            "train/multi_similarity",
        )
        assert {metric for metric in METRICS if not metric.startswith(left)} <= logged
        config = yaml.safe_load((out / f"run-{int(row['run']):04d}" / "config.yaml").read_text())
        assert (str(config["loss"]["w1"]), str(config["seed"])) == (row["loss.w1"], row["seed"])


@pytest.mark.usefixtures("_signals")
def test_a_run_that_falls_behind_ends_with_a_checkpoint(tmp_path: Path, shards: Path, capsys, monkeypatch) -> None:
    """The engine's verdict is set to "behind" once two evaluations are there; the rest is real."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(program, "should_stop", lambda sweep, runs, number: len(runs[number].history) >= 2)
    monkeypatch.setattr(program, "start", Training)
    sweep = write_sweep(tmp_path, early_terminate={"type": "hyperband", "min_iter": 2})
    extra = ["--", *TINY, f"--data.root={shards}", "--optim.epochs=500", "--eval.every_epochs=1"]
    status, said = main_says(capsys, sweep, "--runs=1", "--out", tmp_path / "out", *extra)
    assert status == 0 and "1 runs: 1 stopped" in said and "run 0: stopped, eval/best_mAP" in said
    stopped = json.loads((tmp_path / "out" / "run-0000" / "stopped.json").read_text())
    assert 2 <= stopped["epoch"] < 500
    assert not list((tmp_path / "out").glob(".stop-*"))


def test_a_sweep_whose_first_run_fails_ends(tmp_path: Path) -> None:
    """As a user starts it: the program and its run are processes of their own."""
    words = [PROGRAM, write_sweep(tmp_path), "--out", tmp_path / "out", "--", *TINY, "--data.root=nowhere"]
    failed = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert failed.returncode == 2 and "run 0 failed and none has succeeded yet" in failed.stderr
    assert "nowhere: no such folder" in (tmp_path / "out" / "run-0000.log").read_text()
    assert not (tmp_path / "out" / "run-0001").exists()
