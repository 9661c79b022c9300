"""reid/runs/models.py: which checkpoint of a run is read, and that no program reads a damaged one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reid import Embedder
from reid.export import __main__ as export
from reid.runs import checkpoint
from reid.runs.models import find_run
from tests.support.drawn import Drawn
from tests.support.narrow import use_narrow_resnet10
from tests.support.runs import make_run
from tests.support.status import status_of


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, drawn: Drawn) -> Path:
    use_narrow_resnet10(monkeypatch)
    return make_run(tmp_path / "run", drawn)


def flip_signs(path: Path) -> None:
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    for place in range(len(data) - 4001, len(data), 4):
        data[place] ^= 0x80
    file.write_bytes(data)


def cut(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def forget_files(path: Path) -> None:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "files": {}}))


def lose_state(path: Path) -> None:
    (path / "state.json").unlink()


DAMAGE = [flip_signs, cut, forget_files, lose_state]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    newest, older = checkpoint.find(run / "checkpoints")
    damage(newest)
    embedder = Embedder.load(run, device="cpu")
    assert embedder.source == older
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {newest}") and said.count("\n") == 1 and str(older) in said
    assert status_of(export.main, "--checkpoint", run, "--format=safetensors", "--out", tmp_path / "a") == 0
    assert str(newest) in capsys.readouterr().err
    assert json.loads((tmp_path / "a.json").read_text())["checkpoint"] == older.name


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_that_was_named_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    newest, older = checkpoint.find(run / "checkpoints")
    damage(newest)
    for name in (str(newest), newest.name):
        with pytest.raises(ValueError, match=newest.name):
            find_run(str(run), name)
    assert status_of(export.main, "--checkpoint", newest, "--format=safetensors", "--out", tmp_path / "a") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(newest) in said and not (tmp_path / "a").exists()
    damage(older)
    with pytest.raises(ValueError, match="holds no undamaged checkpoint"):
        find_run(str(run), "newest")


def test_the_best_checkpoint_is_checked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest, older = checkpoint.find(run / "checkpoints")
    for path in (newest, older):
        state = checkpoint.read_state(path) | {"best_name": older.name}
        (path / "state.json").write_text(checkpoint.format_state(state))
    assert find_run(str(run), "best")[1] == older
    cut(newest)
    assert find_run(str(run), "best")[1] == older and f"warning: {newest}" in capsys.readouterr().err
    forget_files(older)
    with pytest.raises(ValueError, match="holds no undamaged checkpoint"):
        find_run(str(run), "best")


def test_only_the_model_of_a_named_checkpoint_is_needed(run: Path) -> None:
    """An archived checkpoint may lack the optimizer; a run resumes from a complete one."""
    newest, older = checkpoint.find(run / "checkpoints")
    (newest / "optimizer.pt").unlink()
    assert find_run("", str(newest))[1] == newest
    assert find_run(str(run), "newest")[1] == older
    assert torch.is_tensor(Embedder.load(newest, device="cpu").model.state_dict()["neck.weight"])
