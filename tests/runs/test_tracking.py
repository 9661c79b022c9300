"""reid/runs/tracking.py: metrics.jsonl line by line, an offline W&B run read back, and W&B failing."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from PIL import Image

from reid.config import Config
from reid.runs import tracking
from reid.runs.environment import code_version
from reid.runs.logged import read_metrics, why_not_logged, without_dataset
from reid.runs.tracking import Tracker, keep_steps_before
from tests.support.offline_runs import files_of_tables, read_back, run_of


@pytest.fixture(autouse=True)
def _no_wandb_of_the_user(monkeypatch, tmp_path):
    for name in (
        "WANDB_MODE",
        "WANDB_DISABLED",
        "WANDB_PROJECT",
        "WANDB_RUN_ID",
        "WANDB_DIR",
        "WANDB_NAME",
        "WANDB_SWEEP_ID",
        "WANDB_API_KEY",
        "WANDB_BASE_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))


def make_tracker(folder: Path, **changes) -> Tracker:
    knobs = {
        "active": True,
        "mode": "off",
        "project": "tests",
        "name": "mine",
        "group": "ours",
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


def test_a_full_disk_is_said_once_and_half_a_line_is_taken_back(tmp_path, monkeypatch, capsys):
    tracker = make_tracker(tmp_path)
    tracker.log(0, {"train/loss": 1.0})
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: Torn(opened(path, mode)))
    tracker.log(1, {"train/loss": 2.0})
    tracker.log(2, {"train/loss": 3.0})
    monkeypatch.undo()
    tracker.log(3, {"train/loss": 4.0})
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 3]
    said = capsys.readouterr().err
    assert said == f"warning: {tmp_path / 'metrics.jsonl'}: lines are missing after step 1: No space left on device\n"


class Torn:
    """A file on a disk that has room for nine more characters."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, text):
        self.file.write(text[:9])
        raise OSError(28, "No space left on device")


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


def test_lines_of_earlier_versions_count_epochs_from_0(tmp_path):
    """Their epochs are read, and kept by a resume, as counted from 1; those of new files stay."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3, "epoch": 0}\n{"step": 3, "eval/best_mAP": 0.5}\n{"step": 7, "epoch": 1}\n')
    for _ in range(2):
        assert [entry.get("epoch") for entry in read_metrics(path)[0]] == [1, None, 2]
        keep_steps_before(path, 8)
    assert [line.get("epoch") for line in lines_of(tmp_path)] == [1, None, 2]


def test_no_lines_yet(tmp_path):
    keep_steps_before(tmp_path / "metrics.jsonl", 10)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_an_offline_run_is_read_back(tmp_path, capfd):
    tracker = make_tracker(tmp_path, mode="offline")
    tracker.log(0, {"train/loss": 2.5})
    tracker.log(10, {"epoch": 1, "train/loss": 0.5, "eval/image/mAP": 0.25})
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(tmp_path / "picture.png")
    tracker.log_pictures(10, {"pictures/one": tmp_path / "picture.png"})
    grey = np.full((4, 4, 3), 128, dtype=np.uint8)
    tracker.log_table(10, "tables/one", ["model", "mAP", "picture"], [["trained", 0.25, grey], ["other", 0.5, None]])
    tracker.log_lines(
        10, "charts/one", [1, 2], {"trained": [0.5, 1.0], "other": [0.25, 0.75]}, title="CMC", xname="rank"
    )
    tracker.summarize({"eval/best_mAP": 0.75})
    tracker.finish()
    assert "warning" not in capfd.readouterr().err
    (records,) = read_back(tmp_path)
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    assert (run["project"], run["display_name"], run["run_group"], run["job_type"]) == (
        "tests",
        "mine",
        "ours",
        "train",
    )
    assert run["config"]["update"]["loss"] == {"w1": 0.1}
    environment = run["config"]["update"]["environment"]
    assert torch.__version__.startswith(environment["torch"]) and environment["accelerate"][0].isdecimal()
    assert environment["code"] == code_version() and len(environment["commit"].rstrip("+")) in (0, 40)
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [(item["train/step"], item["train/loss"]) for item in history if "train/loss" in item] == [
        (0, 2.5),
        (10, 0.5),
    ]
    assert [item["eval/image/mAP"] for item in history if "eval/image/mAP" in item] == [0.25]
    for name in ("pictures/one", "tables/one", "charts/one"):
        assert any(item["train/step"] == 10 and name in str(item) for item in history), name
    tables = {entry["path"]: entry for entry in files_of_tables(records)}
    picture = next(entry for path, entry in tables.items() if path.endswith(".jpg"))
    assert np.abs(np.asarray(Image.open(picture["local_path"])).astype(int) - 128).max() < 3
    table, chart = (
        json.loads(Path(tables[name]["local_path"]).read_text())
        for name in ("tables/one.table.json", "charts/one_table.table.json")
    )
    assert [row[:2] for row in table["data"]] == [["trained", 0.25], ["other", 0.5]] and table["data"][1][2] is None
    assert chart["data"] == [[1, "trained", 0.5], [2, "trained", 1.0], [1, "other", 0.25], [2, "other", 0.75]]
    summary = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    assert summary["eval/best_mAP"] == 0.75
    assert any(record["metric"].get("name") == "train/step" for record in records if record["type"] == "metric")
    globs = {record["metric"].get("glob_name"): record["metric"] for record in records if record["type"] == "metric"}
    assert globs["train/*"]["step_metric"] == globs["eval/*"]["step_metric"] == "train/step"
    named = {record["metric"].get("name"): record["metric"] for record in records if record["type"] == "metric"}
    assert named["epoch"]["step_metric"] == "train/step"
    assert len(lines_of(tmp_path)) == 2


def test_the_evaluation_is_a_run_of_its_own_in_the_same_group(tmp_path, monkeypatch):
    started = {}

    def init(**knobs):
        started.update(knobs)
        raise RuntimeError("seen enough")

    monkeypatch.setattr(wandb, "init", init)
    make_tracker(tmp_path, mode="offline", job_type="evaluate")
    assert (started["name"], started["group"], started["job_type"]) == ("mine-evaluate", "ours", "evaluate")
    assert (started["mode"], started["dir"]) == ("offline", str(tmp_path))


def test_a_resumed_training_goes_on_with_its_run_and_its_evaluation_names_it(tmp_path):
    first = make_tracker(tmp_path, mode="offline", resume_step=0)
    first.log(0, {"train/loss": 2.0})
    first_folder = first.where.removeprefix("wandb sync ")
    assert list(Path(first_folder).glob("run-*.wandb"))
    first.finish(resumes=True)
    second = make_tracker(tmp_path, mode="offline", resume_step=10)
    second.log(10, {"train/loss": 1.0})
    second.finish()
    make_tracker(tmp_path, mode="offline", job_type="eval").finish()
    make_tracker(tmp_path, mode="offline", resume_step=0).finish()  # from the start again: another run
    one, two, evaluation, fresh = map(run_of, read_back(tmp_path))
    histories = [
        [item["history"]["item"] for item in records if item["type"] == "history"] for records in read_back(tmp_path)
    ]
    lines = [[(item["train/step"], item["train/loss"]) for item in history] for history in histories]
    assert lines == [[(0, 2.0)], [(0, 2.0), (10, 1.0)], [], []]  # the last folder of a run holds all of its lines
    assert [path.parent.name for path in tmp_path.glob("wandb/*/*.synced")] == [Path(first_folder).name]
    assert one["run_id"] == two["run_id"] == evaluation["config"]["update"]["train_run"] != fresh["run_id"]
    assert evaluation["run_id"] != one["run_id"]
    assert (evaluation["run_group"], evaluation["job_type"]) == (one["run_group"], "eval") == ("ours", "eval")
    assert "train_run" not in one["config"]["update"]


@pytest.mark.parametrize("in_sweep", [True, False])
def test_a_stopped_run_of_a_sweep_is_given_to_another_agent(tmp_path, monkeypatch, in_sweep):
    if in_sweep:
        monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    tracker = make_tracker(tmp_path, mode="offline")
    tracker.finish(resumes=True)
    (records,) = read_back(tmp_path)
    assert any(record["type"] == "preempting" for record in records) == in_sweep
    (exited,) = [record["exit"] for record in records if record["type"] == "exit"]
    assert int(exited.get("exit_code", 0)) == int(in_sweep)


def test_artifacts(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model.bin").write_bytes(b"12345")
    (tmp_path / "manifest.json").write_text("{}")
    tracker = make_tracker(tmp_path, mode="offline")
    tracker.log_artifact(tmp_path / "checkpoint", "mine/best", "model")
    tracker.log_artifact(tmp_path / "manifest.json", "manifest", "dataset")
    tracker.finish()
    (records,) = read_back(tmp_path)
    artifacts = json.dumps([record for record in records if "artifact" in record["type"]])
    for words in ("mine-best", '"model"', "model.bin", '"manifest"', '"dataset"', "manifest.json"):
        assert words in artifacts


def test_wandb_that_cannot_start_at_all_warns_without_the_key_and_goes_on(tmp_path, monkeypatch, capsys):
    def init(**knobs):
        raise wandb.errors.CommError(f"no room for files of {REFUSED}")

    monkeypatch.setenv("WANDB_API_KEY", REFUSED)
    monkeypatch.setattr(wandb, "init", init)
    tracker = make_tracker(tmp_path, mode="online")
    tracker.log(0, {"train/loss": 1.0})
    tracker.summarize({"eval/best_mAP": 1.0})
    tracker.finish()
    assert lines_of(tmp_path) == [{"step": 0, "train/loss": 1.0}]
    kept, warning = capsys.readouterr().err.splitlines()
    assert kept.endswith("kept offline, for `wandb sync`: CommError: no room for files of ***")
    assert warning == "warning: W&B logging is off for the rest of the run: CommError: no room for files of ***"


SILENT, REFUSED = "a" * 40, "b" * 40  # keys that a server never answers, and that it does not take


@pytest.fixture
def server() -> Iterator[str]:
    """The URL of a server that answers no request with the key SILENT, and refuses all others.

    W&B reads URL and key once in a process: it is ended here to see these, and to forget them.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            _, _, key = base64.b64decode(self.headers["Authorization"].split()[1]).decode().partition(":")
            if key == SILENT:
                ended.wait(300)
                return
            self.send_response(401)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *args):
            pass

    ended = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    wandb.teardown()
    yield f"http://127.0.0.1:{server.server_port}"
    wandb.teardown()
    ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "No API key configured. Use `wandb login` to log in. Or set WANDB_API_KEY."),
        ("short", "WANDB_API_KEY invalid: API key must have 40+ characters"),
        (SILENT, "CommError: "),
        (REFUSED, "CommError: "),
    ],
    ids=["no key", "no such key", "server that never answers", "refused key"],
)
def test_online_without_a_server_is_kept_offline(tmp_path, monkeypatch, capsys, server, key, reason):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no key of the user's
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", server)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    start = wandb.init

    def impatient(*, mode, settings, **knobs):
        assert settings.init_timeout == settings.login_timeout == tracking.START_TIMEOUT_S
        if key == SILENT and mode == "online":
            settings.init_timeout = settings.login_timeout = 1.0  # it will not come, however long one waits
        return start(mode=mode, settings=settings, **knobs)

    monkeypatch.setattr(wandb, "init", impatient)
    tracker = make_tracker(tmp_path, mode="online")
    tracker.log(0, {"train/loss": 1.0})
    tracker.finish()
    said = capsys.readouterr().err
    assert "warning: W&B cannot be reached, so this run is kept offline, for `wandb sync`: " in said and reason in said
    assert "logging is off" not in said and (not key or key == "short" or key not in said)
    assert lines_of(tmp_path) == [{"step": 0, "train/loss": 1.0}]
    (records,) = read_back(tmp_path)
    assert any(record["type"] == "history" for record in records)


class _BreakingRun:
    id = "r1"

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
    assert capsys.readouterr().err.count("W&B logging is off for the rest of the run: OSError: disk full") == 1


def test_metrics_of_one_of_several_datasets():
    config = Config()
    assert without_dataset("eval/mall/image/mAP") == "eval/image/mAP" == without_dataset("eval/image/mAP")
    assert why_not_logged("train/mall/d_ap", config) == "several datasets in --data.root"
    config.data.root = ["a", "b"]
    assert why_not_logged("train/mall/d_ap", config) is None
    for of_all in ("eval/mall/best_mAP", "train/mall/loss", "train/mall/ctl", "train/mall/lr"):
        assert without_dataset(of_all) == of_all  # a sweep for it is refused, since no run logs it
    config.loss.triplet = 0.0
    assert why_not_logged("train/mall/triplet_d_ap", config) == "--loss.triplet or --loss.quadruplet above 0"
