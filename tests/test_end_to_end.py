"""The user's path in small, on two processes: draw, build, train, resume, evaluate."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from reid.data.manifest import load_manifest
from reid.evaluation.external_features import read_features
from reid.export import TOLERANCE
from shards.__main__ import main as shards_main
from tests.support.offline_runs import WANDB, find_files, history_of, read_back, run_of, summary_of
from tests.support.programs import run_program
from tests.support.undrawn import without_pictures

SMALL = [
    "--config=configs/quickstart.yaml", "--data.height=32", "--data.width=16",
    "--batch.identities=4", "--batch.streams=2", "--optim.milestones=[1]", "--optim.warmup_epochs=1",
    "--track.every_steps=2", "--track.wandb=offline",
]  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("end_to_end")
    drawn, built = str(folder / "drawn"), str(folder / "shards")
    sizes = ["--identities-train=16", "--identities-test=6", "--images-per-identity=6", "--distractors=5", "--junk=3"]
    assert shards_main(["synth", "--out", drawn, *sizes, "--cameras=3", "--height=64", "--width=32"]) == 0
    assert shards_main(["build", "market1501", "--root", drawn, "--out", built, "--shards=4"]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(workspace: Path) -> Path:
    """A run of two epochs, interrupted after the first and resumed."""
    arguments = ["train.py", *SMALL, f"--data.root={workspace / 'shards'}", f"--runs={workspace}", "--name=resumed"]
    arguments += ["--track.name=short", "--track.group=all"]
    status, said = run_program(*arguments, "--optim.epochs=1", ranks=2)
    assert status == 0, said
    assert "over 2 process(es)" in said
    status, said = run_program(*arguments, "--optim.epochs=2", "--resume=auto", ranks=2)
    assert status == 0, said
    assert "from epoch 2 step 1" in said
    return workspace / "resumed"


def test_a_resumed_run_equals_an_uninterrupted_one(workspace: Path, trained: Path) -> None:
    arguments = [*SMALL, f"--data.root={workspace / 'shards'}", f"--runs={workspace}", "--name=straight"]
    status, said = run_program("train.py", *arguments, "--optim.epochs=2", "--track.wandb=off", ranks=2)
    assert status == 0, said
    for file in ("model.safetensors", "objective.safetensors"):
        ours = load_file(newest(trained) / file)
        theirs = load_file(newest(workspace / "straight") / file)
        assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    losses = [
        [line["train/loss"] for line in read_lines(run) if "train/loss" in line]
        for run in (trained, workspace / "straight")
    ]
    assert losses[0] == losses[1]


def test_the_log_has_every_term(trained: Path) -> None:
    lines = read_lines(trained)
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == sorted(set(steps))
    terms = {"loss", "cross_entropy", "triplet", "mctl", "center"}
    diagnostics = {"hinge_active", "d_ap", "d_an", "feature_norm", "lr", "images_per_s", "data_wait_share"}
    assert {f"train/{name}" for name in terms | diagnostics} <= set(lines[0])
    assert any("eval/best_mAP" in line for line in lines)


def test_what_the_training_tells_wandb(workspace: Path, trained: Path) -> None:
    """One run in two offline files, as the training was in two goes; read by W&B's own reader."""
    goes = [records for records in read_back(trained) if run_of(records)["job_type"] == "train"]
    first, second = (run_of(records) for records in goes)
    assert first["run_id"] == second["run_id"]
    assert (first["project"], first["display_name"], first["run_group"]) == ("mctl-reid", "short", "all")
    config = first["config"]["update"]
    assert config["loss"]["w1"] == 0.3 and config["world_size"] == 2 and len(config["hosts"]) == 1
    assert config["data_fingerprint"] == load_manifest(workspace / "shards").fingerprint
    assert {"commit", "code", "torch", "wandb"} <= set(config["environment"])
    history = history_of(goes[1])  # which repeats what the first told: W&B's server keeps one of them
    steps = [item["train/step"] for item in history if "train/loss" in item]
    assert steps == [line["step"] for line in read_lines(trained) if "train/loss" in line]
    for name in ("train/mctl", "train/hinge_active", "train/images_per_s", "eval/image/mAP", "eval/centroid/mAP"):
        assert any(name in item for item in history), name
    assert summary_of(goes[1])["eval/best_mAP"] == max(
        line["eval/best_mAP"] for line in read_lines(trained) if "eval/best_mAP" in line
    )
    for file in find_files(trained):
        synced = subprocess.run(
            [WANDB, "sync", "--dry-run", file.parent], capture_output=True, text=True, timeout=60, check=False
        )
        assert synced.returncode == 0, synced.stdout + synced.stderr


def test_evaluation_writes_what_others_read(trained: Path) -> None:
    words = [f"--run={trained}", "--baselines=[untrained,histogram]", "--verification", "--open_set=0.5"]
    status, said = run_program("evaluate.py", *words, ranks=2)
    assert status == 0, said
    folder = trained / "eval" / "pedestrians"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics) == ["image", "centroid", "centroid_all", "ctl_published"]
    for figures in metrics.values():
        assert len(figures["cmc"]) == 50
        assert 0 <= figures["mINP"] <= figures["mAP"] <= 1
        assert figures["num_valid_queries"] > 0
    assert metrics["image"]["gallery_size"] > metrics["centroid"]["gallery_size"]
    for row in ("trained", "untrained encoder", "colour histogram", "equal error", "\nopen set: "):
        assert row in said
    assert f"report: {folder / 'report.html'}" in said
    assert "<html" in (folder / "report.html").read_text()

    (records,) = (records for records in read_back(trained) if run_of(records)["job_type"] == "eval")
    run, training = run_of(records), run_of(read_back(trained)[0])
    assert (run["display_name"], run["run_group"]) == ("short-eval", "all")
    assert run["config"]["update"]["train_run"] == training["run_id"] != run["run_id"]
    told = "".join(str(item) for item in history_of(records))
    for name in ("eval/table", "eval/queries", "eval/image/cmc_table", "rank_lists", "eval/cmc", "eval/pca"):
        assert name in told, name
    assert summary_of(records)["eval/image/mAP"] == metrics["image"]["mAP"]
    ours, theirs = (  # the same point of the same W&B chart
        [{name: item[name] for name in ("train/step", "epoch", "eval/image/mAP", "eval/centroid/mAP")}
         for item in history_of(each) if "eval/image/mAP" in item]
        for each in (records, [each for each in read_back(trained) if run_of(each)["job_type"] == "train"][-1])
    )  # fmt: skip
    assert ours == theirs[-1:] and ours[0]["epoch"] == 2


def test_evaluation_agrees_with_the_evaluation_in_training(trained: Path, tmp_path: Path) -> None:
    """Another number of processes and workers: the same figures. Another batch size: features to float32's rounding."""
    last = [line for line in read_lines(trained) if "eval/image/mAP" in line][-1]
    words = [f"--run={trained}", "--workers=0", "--wandb=off", "--save_features"]
    embeddings = []
    for size in ("128", "7"):
        status, said = run_program(
            "evaluate.py", *words, f"--out={tmp_path / size}", f"--batch_size={size}", prepare=without_pictures
        )
        assert status == 0, said
        embeddings.append(read_features(tmp_path / size / "pedestrians" / "query.npz").features.embeddings)
    metrics = json.loads((tmp_path / "128" / "pedestrians" / "metrics.json").read_text())
    assert metrics["image"]["mAP"] == last["eval/image/mAP"]
    assert metrics["centroid"]["mAP"] == last["eval/centroid/mAP"]
    assert (embeddings[0] - embeddings[1]).abs().max() <= TOLERANCE * embeddings[0].abs().max()


def test_a_second_run_in_the_same_folder_is_refused(trained: Path) -> None:
    config = ["--config", str(trained / "config.yaml"), f"--runs={trained.parent}", "--name=resumed"]
    status, said = run_program("train.py", *config, "--resume=never")
    assert status == 2
    assert "holds a run already" in said and "--resume=auto" in said
    assert "Traceback" not in said


def newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


def read_lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_images_alone_are_enough_to_train_on(workspace: Path) -> None:
    for image in (workspace / "drawn" / "bounding_box_train").glob("*.jpg"):
        person = workspace / "folder" / "train" / image.name[:4]
        person.mkdir(parents=True, exist_ok=True)
        (person / image.name).write_bytes(image.read_bytes())
    built = str(workspace / "train_only")
    assert shards_main(["build", "folder", "--root", str(workspace / "folder"), "--out", built, "--shards=4"]) == 0
    small = [*SMALL, f"--data.root={built}", f"--runs={workspace}", "--name=alone", "--track.wandb=off"]
    status, said = run_program("train.py", *small, "--optim.epochs=1", "--batch.steps_per_epoch=2")
    assert status == 0, said
    assert "nothing: the data has no query and gallery" in said
    assert newest(workspace / "alone").name == "epoch-0001-step-000000"
