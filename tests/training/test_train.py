"""What training refuses before its first step, and whole trainings of a few steps in this process."""

from __future__ import annotations

import contextlib
import copy
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

from reid.config import BatchConfig, Config, EvaluateConfig, LossConfig, load
from reid.data.images import Pixels
from reid.data.joined import Dataset
from reid.data.manifest import load_manifest, save_manifest
from reid.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from reid.data.plan import Plan
from reid.distributed import start_accelerator
from reid.evaluation.evaluator import extract
from reid.evaluation.sources import RunSource, list_testable
from reid.files import check_writable
from reid.losses.objective import Objective
from reid.metrics import Features
from reid.model.saved import find_undamaged
from reid.runs import checkpoint
from reid.runs.checkpoint import Parts, TrainState
from reid.runs.folder import RunFolder
from reid.runs.store import RunStore
from reid.training import preemption as stopping
from reid.training import validation
from reid.training.data import check_matches, check_rank_sizes, describe_batch, load_data
from reid.training.setup import check_image_size, check_ranks
from reid.training.train import train
from reid.training.trainer import format_progress
from reid.training.validation import Validation
from shards.build import build
from shards.pedestrians.dataset import synthesize
from shards.readers import market1501
from tests.support.drawn import Drawn
from tests.support.models import make_model
from tests.support.narrow import use_narrow_resnet10


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    synthesize(
        folder / "drawn", identities_train=8, identities_test=2, images_per_identity=4, cameras=2, distractors=0,
        junk=0, height=32, width=16, progress=False,
    )  # fmt: skip
    build(market1501.read(folder / "drawn"), folder / "shards", num_shards=2)
    return folder / "shards"


def break_root(config: Config) -> None:
    config.data.root = "no/such/folder"


def break_streams(config: Config) -> None:
    config.batch.identities = 6


def break_shards(config: Config) -> None:
    config.batch.identities, config.batch.streams = 8, 4


def break_margin(config: Config) -> None:
    config.loss.margin = 0.0


def break_weights(config: Config) -> None:
    config.model.weights = "no/such/file.safetensors"


def break_device(config: Config) -> None:
    config.device = "cuda"


def break_checkpointing(config: Config) -> None:
    config.speed.gradient_checkpointing = True


def break_losses(config: Config) -> None:
    config.loss.cross_entropy = config.loss.triplet = config.loss.mctl = config.loss.center = 0.0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_root, "no/such/folder"),
        (break_streams, "batch.identities = 6 does not divide among batch.streams = 4"),
        (break_shards, "2 training shards are too few for batch.streams = 4; rebuild with --shards 4"),
        (break_margin, r"loss.margin = 0.0 must be greater than 0"),
        (break_weights, "model.weights = no/such/file.safetensors: no such file"),
        (break_losses, "every loss weight is 0"),
        (break_checkpointing, "gradient_checkpointing = true: resnet10 is no transformer .*; use speed.recompute"),
        pytest.param(
            break_device,
            "device = cuda, and torch finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_bad_input_is_named_before_the_first_step(
    root: Path, tmp_path: Path, damage: Callable[[Config], None], message: str
) -> None:
    config = Config(name="broken", runs=str(tmp_path))
    config.data.root = str(root)
    config.batch.identities, config.batch.streams = 4, 4 if damage is break_streams else 2
    config.model.encoder, config.model.weights = "resnet10", "none"
    config.track.wandb = "off"
    damage(config)
    with pytest.raises(ValueError, match=message):
        train(config)
    assert not (tmp_path / "broken" / "checkpoints").exists()


@pytest.fixture
def _fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without what a training leaves in its process: accelerate's state, and torch's switches. Encoders are narrow."""
    use_narrow_resnet10(monkeypatch)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def config(root: Path, tmp_path: Path, _fresh_process: None) -> Config:
    config = Config(name="run", runs=str(tmp_path), device="cpu")
    config.data.root, config.data.height, config.data.width, config.data.workers = str(root), 32, 16, 0
    config.batch.identities, config.batch.streams, config.batch.images, config.batch.steps_per_epoch = 4, 2, 2, 2
    config.model.encoder, config.model.weights = "resnet10", "none"
    config.optim.epochs, config.optim.milestones = 2, []
    config.track.wandb, config.track.every_steps, config.track.keep_checkpoints = "off", 1, 3
    return config


def again(config: Config, **knobs: Any) -> bool:
    AcceleratorState._reset_state(reset_partial_state=True)
    return train(replace(config, resume="auto", **knobs)).stopped


def log_of(config: Config) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.folder / "metrics.jsonl").read_text().splitlines()]


def test_bf16_trains_and_is_evaluated_in_float32_as_evaluate_does_it(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.precision, config.seed, config.optim.epochs = "bf16", 2**40 + 1, 1
    seen: dict[str, Features] = {}

    def watched(model: nn.Module, root: str, manifest: Any, split: str, pixels: Any, **knobs: Any) -> Features:
        seen[split] = extract(model, root, manifest, split, pixels, **knobs)
        return seen[split]

    monkeypatch.setattr(validation, "extract", watched)
    assert not train(config).stopped
    model = make_model(8, "resnet10")
    checkpoint.load_weights(checkpoint.find(config.folder / "checkpoints")[0], model)
    manifest, device = load_manifest(config.data.root), torch.device("cpu")
    alone = extract(
        model, config.data.root, manifest, "query", Pixels(32, 16), batch_size=128, workers=0, device=device
    )
    assert torch.equal(seen["query"].embeddings, alone.embeddings)
    last = log_of(config)[-1]
    assert last["eval/last_mAP"] == last["eval/best_mAP"] == last["eval/image/mAP"]
    assert f"image/mAP: best {last['eval/image/mAP']:.4f} (epoch-0001-step-000000), last" in capsys.readouterr().out


def test_deterministic_is_switched_on(config: Config) -> None:
    config.speed.deterministic, config.optim.epochs = True, 1
    assert not train(config).stopped
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark


def test_an_evaluation_that_was_killed_is_made_by_the_resumed_run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.eval.every_epochs = 1
    written: list[str] = []
    write = checkpoint._write
    monkeypatch.setattr(checkpoint, "_write", lambda folder, *rest: (written.append(folder.name), write(folder, *rest)))
    straight = replace(config, name="straight")
    assert not train(straight).stopped
    assert written == [".epoch-0001-step-000000.writing", ".epoch-0002-step-000000.writing"]  # once each

    def killed(*args: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    for number in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(Validation, "evaluate_test", killed)
            with pytest.raises(KeyboardInterrupt):
                again(config)
        assert checkpoint.find(config.folder / "checkpoints")[0].name == "epoch-0001-step-000000", number
    assert not again(config)
    states = [checkpoint.read_state(checkpoint.find(c.folder / "checkpoints")[0]) for c in (straight, config)]
    assert states[0] == states[1]
    scores = [[line for line in log_of(c) if "eval/best_mAP" in line] for c in (straight, config)]
    assert scores[0] == scores[1] and len(scores[0]) == 2


def test_a_checkpoint_that_is_not_there_is_not_the_best(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config.eval.every_epochs = 1
    save, calls = checkpoint.save, []

    def full_at_first(*args: Any) -> Path:
        calls.append(1)
        if len(calls) <= 2:  # before the first evaluation and after it
            raise OSError(28, "No space left on device")
        return save(*args)

    monkeypatch.setattr(checkpoint, "save", full_at_first)
    monkeypatch.setattr(Validation, "evaluate_test", lambda *args: {"image/mAP": 1.0 / (1 + len(calls))})
    assert not train(config).stopped
    (kept,) = checkpoint.find(config.folder / "checkpoints")
    state = checkpoint.read_state(kept)
    assert state["best_name"] == kept.name and state["best"] == {"image/mAP": 0.25}


def test_a_stop_at_the_end_of_an_epoch_leaves_the_evaluation_to_the_resumed_run(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[str] = []
    monkeypatch.setattr(Validation, "evaluate_test", lambda *args: evaluated.append("now") or {"image/mAP": 0.5})
    stop = config.folder.parent / "stop"
    stop.touch()
    assert train(replace(config, stop_file=str(stop))).stopped  # the first step: one process sees the file at once
    assert again(config, stop_file=str(stop))
    config.optim.epochs = 1
    assert json.loads((config.folder / "stopped.json").read_text())["checkpoint"] == "epoch-0001-step-000000"
    assert not evaluated


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"seed": 1}, "plan has seed = 0, here it is 1"),
        ({"batch__images": 3}, "plan has batch.images = 2, here it is 3"),
        ({"data__pool_images": 7}, "plan has data.pool_images = 16384, here it is 7"),
        (
            {"data__val_identities": 2},
            r"held_out has data.val_identities = 0, here it is 2; .* \(data.val_identities\)",
        ),
        (
            {"data__mean": (0.5, 0.5, 0.5)},
            r"pixels has data\.mean = \[0\.485, .* is \[0\.5, 0\.5, 0\.5\]; .* \(data\.mean\)",
        ),
        ({"optim__algorithm": "sgd"}, "optimizer has optim.algorithm = 'adam', here it is 'sgd'"),
        ({"optim__ema": 0.9}, r"average has optim\.ema = 'off', here it is 'on'; .* \(optim\.ema\)"),
        ({"optim__bias_lr_factor": 2.0, "optim__weight_decay": 0.1}, ""),
    ],
)
def test_a_resume_with_other_batches_is_refused_and_with_other_rates_goes_on(
    config: Config, knobs: dict[str, Any], words: str
) -> None:
    config.optim.epochs = 1
    assert not train(config).stopped
    config.optim.epochs = 2
    for name, value in knobs.items():
        section, _, knob = name.rpartition("__")
        setattr(getattr(config, section) if section else config, knob, value)
    if not words:
        assert not again(config)
        return
    with pytest.raises(ValueError, match=f"belongs to another run: its {words}"):
        again(config)


def test_an_average_is_evaluated_and_saved_and_resumed_to_the_bit(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.optim.ema, config.eval.every_epochs = 0.9, 1
    stop = config.folder.parent / "stop"
    stop.touch()
    assert train(replace(config, stop_file=str(stop))).stopped
    evaluated: list[dict[str, torch.Tensor]] = []
    evaluate = Validation.evaluate_test
    monkeypatch.setattr(
        Validation,
        "evaluate_test",
        lambda self, model: evaluated.append(copy.deepcopy(model.state_dict())) or evaluate(self, model),
    )
    assert not again(config)
    assert "optim.ema = 0.9: saved as the model" in capsys.readouterr().out
    straight, skipped = replace(config, name="straight"), replace(config, name="skipped")
    assert not again(straight)
    resumed, uninterrupted = (checkpoint.find(c.folder / "checkpoints")[0] for c in (config, straight))
    hashes = checkpoint.read_state(resumed)["files"]
    assert hashes == checkpoint.read_state(uninterrupted)["files"] and len(hashes) == 4
    assert checkpoint.read_state(resumed)["best"] == checkpoint.read_state(uninterrupted)["best"]
    average, weights = (load_file(resumed / f"{name}.safetensors") for name in ("model", "training"))
    assert not torch.equal(average["classifier.weight"], weights["classifier.weight"])
    assert all(torch.equal(value, evaluated[-1][name]) for name, value in average.items())
    (resumed / "training.safetensors").unlink()
    assert find_undamaged(config.folder / "checkpoints")[0] != resumed

    monkeypatch.setattr("reid.training.step.take_step", lambda *args: False)  # as fp16's scaler skips one
    assert not again(skipped)
    newest = checkpoint.find(skipped.folder / "checkpoints")[0]
    assert load_file(newest / "model.safetensors")["neck.num_batches_tracked"] == 0
    config.optim.ema = 0.0
    with pytest.raises(ValueError, match=r"average has optim\.ema = 'on', here it is 'off'"):
        again(config)


def test_the_number_of_ranks_is_shown_and_kept(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config.batch.ranks, config.speed.recompute, config.optim.epochs = 2, True, 1
    assert not train(config).stopped
    assert "2 virtual over 1 process(es), 4 images each, computed twice" in capsys.readouterr().out
    config.optim.epochs = 2
    for ranks in (0, 1):
        config.batch.ranks = ranks
        with pytest.raises(ValueError, match=r"trained with 2 ranks, here it is batch.ranks = 1; --batch.ranks=2 "):
            again(config)


def test_streams_are_chosen_for_the_data_and_kept_by_a_resume(
    config: Config, drawn: Drawn, capsys: pytest.CaptureFixture[str]
) -> None:
    config.batch.streams, config.optim.epochs = "auto", 1
    assert not train(replace(config, name="chosen", batch=replace(config.batch), dry_run=True)).stopped
    assert "4 identities x 2 images, 2 streams" in capsys.readouterr().out
    assert not train(replace(config, batch=replace(config.batch, streams=1))).stopped
    config.optim.epochs = 2
    assert not again(config)  # an earlier version may have chosen 1
    assert load(config.folder / "config.yaml").batch.streams == 1
    config.name = "ranks"
    with pytest.raises(
        ValueError, match=r"2 training shards are too few for batch.streams = 4; rebuild with --shards 4"
    ):
        load_data(config, world_size=4)
    config.data.root, config.batch.identities = str(drawn.root), 12
    with pytest.raises(ValueError, match=r"batch.streams = 6 does not divide among 4 ranks; .* launch 1, 2, 3, 6 proc"):
        load_data(config, world_size=4)
    config.batch.ranks = 4  # which the configuration says: not a matter of processes
    assert load_data(config, world_size=2).plan.streams == 4


def test_two_datasets_are_trained_resumed_and_evaluated(
    config: Config, drawn: Drawn, capsys: pytest.CaptureFixture[str]
) -> None:
    config.data.root, config.batch.shares = [config.data.root, str(drawn.root)], [2, 4]
    config.batch.identities, config.batch.streams, config.optim.epochs = 6, "auto", 1
    config.eval.every_epochs = 1
    straight = replace(config, name="straight", optim=replace(config.optim, epochs=2))
    assert not train(straight).stopped
    said = capsys.readouterr().out
    assert ": pedestrians, 8 identities, 32 images, 2 shards; 2 of 6 identities a step, 1 streams" in said
    assert ": drawn, 16 identities, 68 images, 8 shards; 4 of 6 identities a step, 2 streams" in said
    assert "query against gallery of drawn, pedestrians, and the mean" in said
    *steps, last = log_of(straight)
    for line in steps:
        if "train/loss" not in line:
            continue
        for name in ("cross_entropy", "triplet_d_ap", "triplet_d_an", "d_ap", "d_an"):
            # every identity has two images here: the anchors, too, are two to one
            mean = (2 * line[f"train/drawn/{name}"] + line[f"train/pedestrians/{name}"]) / 3
            assert mean == pytest.approx(line[f"train/{name}"], rel=1e-5)
        assert not [name for name in line if name.endswith("weight")]
    for name in ("image/mAP", "centroid/rank1"):
        mean = (last[f"eval/drawn/{name}"] + last[f"eval/pedestrians/{name}"]) / 2
        assert last[f"eval/{name}"] == pytest.approx(mean)
    assert last["eval/last_mAP"] == last["eval/image/mAP"]

    assert not train(config).stopped
    config.data.root.reverse(), config.batch.shares.reverse()
    config.optim.epochs = 2
    assert not again(config)
    for now, then in zip(log_of(config), log_of(straight), strict=True):
        assert {n: v for n, v in now.items() if "loss" in n or "mAP" in n} == {
            n: v for n, v in then.items() if "loss" in n or "mAP" in n
        }
    config.batch.streams, config.batch.shares, config.optim.epochs = "auto", [3, 3], 3
    with pytest.raises(ValueError, match=r"plan has batch.shares = \[4, 2\], here it is \[3, 3\]"):
        again(config)
    config.data.root, config.batch.shares = str(drawn.root), None
    with pytest.raises(ValueError, match=r"its data is \[.*here it is .*data\.root"):
        again(config)

    evaluated = RunSource(EvaluateConfig(run=str(config.folder)))
    assert len(evaluated.manifests) == 2
    for manifest in evaluated.manifests.values():
        assert not evaluated.list_notes(manifest)
    stranger = replace(manifest, notice="another")
    (note,) = evaluated.list_notes(stranger)
    assert "trained on other data" in note and all(m.fingerprint[:12] in note for m in evaluated.manifests.values())


def test_datasets_of_a_run_without_a_test_set_are_named_and_not_evaluated(
    drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_manifest(replace(drawn.manifest, splits={"train": drawn.manifest.split("train")}), tmp_path)
    roots = [str(tmp_path), str(drawn.root)]
    assert list_testable(roots) == [str(drawn.root)]
    assert f"{tmp_path}: no query and gallery, not evaluated" in capsys.readouterr().err
    assert list_testable(roots[:1]) == roots[:1]  # whose evaluation says what is missing


def test_a_number_of_ranks_that_followed_the_processes() -> None:
    """It may follow them again, with a warning, or be fixed at what it was."""
    followed, fixed = TrainState(ranks=2, follows_processes=True), TrainState(ranks=2)
    (text,) = check_ranks(followed, BatchConfig(), 4)
    assert "trained with 2 ranks" in text and "--batch.ranks=2" in text
    assert check_ranks(followed, BatchConfig(ranks=2), 1) == check_ranks(fixed, BatchConfig(), 2) == []
    for state, batch, processes in ((followed, BatchConfig(ranks=4), 4), (fixed, BatchConfig(), 4)):
        with pytest.raises(ValueError, match=r"trained with 2 ranks, here it is batch\.ranks = 4"):
            check_ranks(state, batch, processes)
    (text,) = check_ranks(TrainState(), BatchConfig(), 4)  # a checkpoint that did not note it
    assert "did not note" in text


@pytest.mark.parametrize(("images", "ranks", "knobs"), [(1, 4, {}), (2, 4, {}), (1, 2, {}), (1, 4, {"repeat": True})])
def test_an_identity_of_one_image_alone_on_a_rank(images: int, ranks: int, knobs: dict[str, bool]) -> None:
    counts = np.array([4] * 7 + [images])
    plan = Plan(counts, np.arange(8) // 2, 4, 4, 4, 4, repeat_short="repeat" in knobs, ranks=ranks)
    refused = images == 1 and ranks == 4 and not knobs
    with pytest.raises(ValueError, match="1 identities have one image") if refused else contextlib.nullcontext():
        check_rank_sizes(Config(), plan)


def test_the_start_table_says_what_of_a_run_is_loaded(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config.optim.epochs = 1
    assert not train(config).stopped
    written = load(config.folder / "config.yaml").data
    assert (written.mean, written.std, written.interpolation) == (IMAGENET_MEAN, IMAGENET_STD, "bilinear")
    config.model.weights = str(config.folder)
    config.name, config.dry_run = "next", True
    assert not again(config)
    (row,) = (line for line in capsys.readouterr().out.splitlines() if f"{config.model.weights}/checkpoints/" in line)
    assert row.split()[0] == "weights" and row.endswith("under encoder; left out: classifier (1), neck (4)")


def test_a_dry_run_says_what_it_saw_and_what_it_cannot_write_and_leaves_nothing(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.dry_run, config.runs = True, str(tmp_path / "a" / "b")
    assert not train(config).stopped
    assert not (tmp_path / "a").exists()
    said = capsys.readouterr().out
    for name in ("loss", "hinge_active", "d_ap", "d_an", "triplet_d_ap", "feature_norm"):
        assert f" {name} " in said
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/run cannot be written: Not a directory; give another --runs"):
        check_writable(tmp_path / "file" / "run")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = RunFolder(tmp_path / "file")
    with pytest.raises(ValueError, match=r"file/stopped.json cannot be written: Not a directory; make room"):
        folder.write(folder.stopped, "stopped")


def test_a_dry_run_looks_at_the_query(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    def watched(*args: Any, rows: np.ndarray, **knobs: Any) -> Features:
        seen.append((args[3], len(rows)))
        return extract(*args, rows=rows, **knobs)

    config.dry_run, config.eval.batch_size = True, 1
    monkeypatch.setattr(validation, "extract", watched)
    assert not train(config).stopped
    assert seen == [("query", 1)]


def test_a_signal_in_an_evaluation_is_written_down_at_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config.eval.every_epochs = 1
    seen: list[dict[str, Any] | None] = []

    def asked(*args: Any) -> dict[str, float]:
        file = config.folder / "stopped.json"
        signal.raise_signal(signal.SIGUSR1)
        seen.append(json.loads(file.read_text()) if file.exists() else None)
        return {"image/mAP": 0.5}

    monkeypatch.setattr(Validation, "evaluate_test", asked)
    assert train(config).stopped  # one step later
    at = {"epoch": 1, "step": 0, "reason": "SIGUSR1", "checkpoint": "epoch-0001-step-000000"}
    assert seen == [at]
    assert json.loads((config.folder / "stopped.json").read_text())["checkpoint"] == "epoch-0001-step-000001"
    assert not again(config)  # asked again in the last evaluation: it is done, and nobody needs to go on
    assert len(seen) == 2 and not (config.folder / "stopped.json").exists()


def test_the_group_that_agrees_on_stopping_waits_as_long_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(stopping, "is_distributed", lambda: True)
    monkeypatch.setattr(stopping.dist, "new_group", lambda **knobs: asked.append(knobs))
    stopping.StopRequest(timeout_s=77).close()
    assert asked == [{"backend": "gloo", "timeout": timedelta(seconds=77)}]


def test_the_line_of_a_step() -> None:
    speed = {"images_per_s": 640.4, "steps_per_s": 10.0, "data_wait_share": 0.125, "memory_gib": 3.21}
    values = {"loss": 2.5, "cross_entropy": 1.25, "center": 90.0, "d_ap": 4.0}
    weights = {"cross_entropy": 1.0, "triplet": 1.0, "center": 0.01}
    assert format_progress(2, 120, values, weights, speed, left=37250) == (
        "epoch 3/120 loss 2.500 = cross_entropy 1.250 + center 0.900, 640 images/s waiting for data 12% "
        "memory 3.2 GiB left 1:02:05"
    )


def test_a_disk_without_room_for_the_checkpoints(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    model, objective = nn.Linear(2**18, 1, bias=False), Objective(LossConfig(), 1, 1)  # 1 MiB, and a few bytes
    config.folder.mkdir()
    store = RunStore(RunFolder(config.folder), Parts(model, {}, objective), keep=2)
    for mebibytes, enough in ((13, True), (11, False)):  # (2 + 2) checkpoints of weights and two moments
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=mebibytes * 2**20: SimpleNamespace(free=free))
        if enough:
            store.check_space()
            continue
        with pytest.raises(ValueError, match=r"11 MiB are free, 4 checkpoints take 12 MiB; make room, lower track"):
            store.check_space()
    for epoch in (1, 2):  # which are there take no more room
        (config.folder / "checkpoints" / f"epoch-{epoch:04d}-step-000000").mkdir(parents=True)
    for mebibytes, enough in ((7, True), (5, False)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=mebibytes * 2**20: SimpleNamespace(free=free))
        with contextlib.nullcontext() if enough else pytest.raises(ValueError, match="2 checkpoints take 6 MiB"):
            store.check_space()


def test_a_finished_run_is_left_as_it_is(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.optim.epochs = 1
    assert not train(config).stopped
    files = {path: path.read_bytes() for path in config.folder.rglob("*") if path.is_file()}
    best = json.loads((checkpoint.find(config.folder / "checkpoints")[0] / "state.json").read_text())["best"]
    assert "trained to epoch 1 of 1" in capsys.readouterr().out
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    assert not again(config, stop_file="another")
    said = capsys.readouterr().out
    assert "nothing to train: the run is at epoch 1, optim.epochs is 1" in said and "from epoch 2" not in said
    assert f"image/mAP: best {best['image/mAP']:.4f} (epoch-0001-step-000000)" in said
    assert {path: path.read_bytes() for path in config.folder.rglob("*") if path.is_file()} == files


def test_metrics_without_a_camera_rule_say_so(config: Config, root: Path) -> None:
    manifest = load_manifest(root)
    splits = {name: replace(split, cameras=((-1,),) * len(split.pids)) for name, split in manifest.splits.items()}
    held_out = np.arange(8) < 3
    cases = [(~held_out & held_out, False), (held_out, False), (held_out, True)]
    for whole, where in (
        (manifest, [""] * 3),
        (replace(manifest, splits=splits), ["2 of 2 query", "3 of 3 held", "gal"]),
    ):
        for (held, last), words in zip(cases, where, strict=True):
            evaluates = Validation(config.data, Dataset("here", "drawn", whole), held, 8, torch.device("cpu"))
            text = evaluates.warn_of_cameras(last) or ""
            assert bool(text) == bool(words) and words in text
            assert ("query" in text) == (bool(words) and (last or not held.any()))


def test_a_batch_of_short_groups_is_described() -> None:
    plan = Plan(np.array([2, 2, 8]), np.zeros(3, dtype=int), 1, identities=3, images=4, streams=1)
    text = describe_batch(plan)
    assert "3 identities x up to 4 images, 9 images a step" in text and "2 of 3 identities have fewer" in text
    assert describe_batch(replace(plan, images=2)) == "3 identities x 2 images"


def test_fewer_processes_than_the_launcher_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "Accelerator", lambda **knobs: SimpleNamespace(num_processes=1))
    with pytest.raises(ValueError, match="promised WORLD_SIZE = 2 processes but 1 take part; on a CPU launch with"):
        start_accelerator("no")


def test_an_image_that_is_too_small_for_the_encoder(config: Config) -> None:
    model = nn.Sequential(nn.Dropout(), nn.Conv2d(3, 4, 33))
    with pytest.raises(
        ValueError, match=r"data.height = 32, data.width = 16: resnet10 cannot take images of this size"
    ):
        check_image_size(config, model, torch.device("cpu"))
    assert model.training


def test_query_and_gallery_without_a_match(config: Config, root: Path) -> None:
    manifest = load_manifest(root)
    check_matches(str(root), manifest)
    gallery, query = manifest.split("gallery"), manifest.split("query")
    one_camera = {"query": replace(query, cameras=((1,),) * len(query.pids)),
                  "gallery": replace(gallery, cameras=((1,),) * len(gallery.pids))}  # fmt: skip
    others = {"gallery": replace(gallery, pids=gallery.pids + 1000)}
    unknown = {name: replace(split, cameras=((-1,),) * len(split.pids)) for name, split in one_camera.items()}
    check_matches(str(root), replace(manifest, splits={**manifest.splits, **unknown}))
    check_matches(str(root), replace(manifest, splits={"train": manifest.split("train")}))
    for splits in (one_camera, others):
        with pytest.raises(ValueError, match=f"data.root = {root}: no query has an image of its identity"):
            check_matches(str(root), replace(manifest, splits={**manifest.splits, **splits}))
