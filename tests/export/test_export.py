"""reid/export/: files run by others than the program that wrote them, and what is refused."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from reid import Embedder
from reid.config import load, save
from reid.export import HALF_TOLERANCE, TOLERANCE, exporter, formats
from reid.export.__main__ import main
from reid.metrics.features import JUNK
from reid.runs import checkpoint
from tests.support.drawn import HEIGHT, WIDTH, Drawn
from tests.support.runs import load_once, make_run
from tests.support.status import status_of

MISSING = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install .[export])")
FORMATS = [pytest.param("onnx", marks=needs_onnx), "torch_export", "safetensors"]


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        load_once(patch)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, drawn: Drawn) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", drawn)


@pytest.fixture(scope="module")
def embedder(run: Path) -> Embedder:
    return Embedder.load(run, device="cpu", batch_size=8)


@pytest.fixture(scope="module")
def files(drawn: Drawn) -> list[Path]:
    part = drawn.manifest.split("gallery")
    return [
        path for pid, paths in zip(part.pids, drawn.sources("gallery"), strict=True) if pid != JUNK for path in paths
    ]


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """One file per format, written when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = folder / f"m.{name}"
            assert call(run, made[name], name=name) == 0
        return made[name]

    return make


def read_by_hand(paths: list[Path]) -> np.ndarray:
    """As another program would: Pillow, RGB, 0 to 1, (N, 3, H, W)."""
    images = [np.asarray(Image.open(path).convert("RGB"), np.float32) / 255 for path in paths]
    return np.stack(images).transpose(0, 3, 1, 2)


@cache
def open_onnx(path: Path):
    return importlib.import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    session = open_onnx(path)
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(float)", [3, HEIGHT, WIDTH])
    assert made.name == "features" and isinstance(given.shape[0], str)  # a batch of any size
    return session.run(None, {"images": images})[0]


@cache
def open_program(path: Path) -> tuple[torch.nn.Module, str]:
    """The model and the metadata."""
    extra = {"metadata.json": ""}
    return torch.export.load(str(path), extra_files=extra).module(), extra["metadata.json"]


def run_program(path: Path, images: np.ndarray) -> np.ndarray:
    return open_program(path)[0](torch.from_numpy(images)).detach().numpy()


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize(
    ("name", "runner"), [pytest.param("onnx", run_onnx, marks=needs_onnx), ("torch_export", run_program)]
)
def test_another_program_gets_the_same_features(exported, embedder: Embedder, files, name, runner, count) -> None:
    """Decoders may differ by one of 256 steps, so pixels come from Pillow for both."""
    images = read_by_hand(files[:count])
    wanted = embedder.embed([Image.open(path) for path in files[:count]])
    found = runner(exported(name), images)
    assert found.dtype == np.float32 and found.shape == (count, embedder.dim)
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()
    bgr = runner(exported(name), images[:, ::-1].copy())
    assert np.abs(bgr - wanted).max() > 1e-3 * np.abs(wanted).max()  # the comparison sees an exchange of colours


def test_weights_are_the_checkpoints(exported, run: Path) -> None:
    path = exported("safetensors")
    saved = {}
    with safe_open(checkpoint.find(run / "checkpoints")[0] / "model.safetensors", "pt") as file:
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {name for name in saved if not name.startswith("classifier.")}
        assert all(torch.equal(file.get_tensor(name), saved[name]) for name in file.keys())  # noqa: SIM118


def metadata_of(name: str, path: Path) -> dict[str, str]:
    if name == "onnx":
        return {entry.key: entry.value for entry in importlib.import_module("onnx").load(path).metadata_props}
    if name == "safetensors":
        with safe_open(path, "pt") as file:
            return file.metadata()
    found = json.loads(open_program(path)[1])
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_metadata_is_inside_and_beside(exported, embedder: Embedder, name: str) -> None:
    found = metadata_of(name, exported(name))
    assert (found["height"], found["width"], found["dim"]) == (str(HEIGHT), str(WIDTH), str(embedder.dim))
    assert json.loads(found["mean"]) == [0.485, 0.456, 0.406] and json.loads(found["std"]) == [0.229, 0.224, 0.225]
    assert found["fingerprint"] == embedder.fingerprint and found["colours"] == "RGB"
    assert "not normalized" in found["feature"] and "bilinear" in found["resize"]
    assert ("is not inside" in found["input"]) == (name == "safetensors")
    assert json.loads(found["model"])["encoder"] == "resnet10"
    beside = json.loads(exported(name).with_name(f"m.{name}.json").read_text())
    assert {key: value if isinstance(value, str) else json.dumps(value) for key, value in beside.items()} == found


@pytest.mark.parametrize("name", ["torch_export", "safetensors"])
def test_flip_test_and_dimensions_are_in_the_graph_and_in_the_metadata(
    drawn: Drawn, files, tmp_path: Path, capsys, name: str
) -> None:
    run, out = make_run(tmp_path / "run", drawn, model__nested=[16]), tmp_path / f"a.{name}"
    # the features of the file are those of the embedder
    assert call(run, out, "--flip", "--dimensions", 16, name=name) == 0
    assert "flip test" in capsys.readouterr().out
    found = metadata_of(name, out)
    assert found["flip"] == "true" and "mirror image" in found["feature"]
    assert found["dim"] == found["dimensions"] == "16" and "first 16 of 512 numbers" in found["feature"]
    wanted = Embedder.load(run, device="cpu", flip=True, dimensions=16)
    assert found["fingerprint"] == wanted.fingerprint
    images = torch.stack([wanted.read(path) for path in files[:3]])
    features = formats.WRITERS[name][1](out)(images)
    assert features.shape == (3, 16)
    assert np.abs(features - wanted.embed_pixels(images)).max() <= TOLERANCE * np.abs(features).max()
    assert call(run, out, "--dimensions", 8, name=name) == 2
    assert "dimensions = 8" in capsys.readouterr().err


@pytest.mark.parametrize("name", FORMATS)
def test_float16_and_normalization_by_the_caller(exported, run: Path, embedder: Embedder, files, tmp_path, name):
    """Of graphs, input and output stay float32; the caller normalizes with the numbers of the metadata."""
    out = tmp_path / "half"
    assert call(run, out, "--half", "--normalization", "outside", name=name) == 0
    found = metadata_of(name, out)
    assert (found["precision"], found["normalization"]) == ("float16", "outside") and "is not inside" in found["input"]
    assert out.stat().st_size < 0.6 * exported(name).stat().st_size
    mean, std = (np.float32(json.loads(found[key])).reshape(3, 1, 1) for key in ("mean", "std"))
    images = (read_by_hand(files[:3]) - mean) / std
    wanted = embedder.embed([Image.open(path) for path in files[:3]])
    if name == "safetensors":
        features = formats.WRITERS[name][1](out)(torch.stack([embedder.read(path) for path in files[:3]]))
    else:
        features = (run_onnx if name == "onnx" else run_program)(out, images)
    assert features.dtype == np.float32
    assert np.abs(features - wanted).max() <= HALF_TOLERANCE * np.abs(wanted).max()
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(wanted, axis=1)
    assert ((features * wanted).sum(1) > 0.9999 * lengths).all()
    assert embedder.model.neck.weight.dtype == torch.float32  # the model itself stays as it is


def test_the_grid_of_position_embeddings_is_in_the_metadata(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "grid_of", lambda model: (16, 8))  # as of a transformer
    assert call(run, tmp_path / "a.safetensors") == 0
    assert json.loads(metadata_of("safetensors", tmp_path / "a.safetensors")["grid"]) == [16, 8]


def test_nothing_else_is_left_behind(exported) -> None:
    for name in ("torch_export", "safetensors"):
        exported(name)
    assert not [path.name for path in exported("safetensors").parent.iterdir() if "part" in path.name]


def call(run: Path, out: Path, *more: object, name: str = "safetensors") -> int:
    return status_of(main, "--checkpoint", run, "--format", name, "--out", out, *more)


def test_the_difference_is_measured_on_real_images_and_said(
    run: Path, drawn: Drawn, files, tmp_path: Path, capsys
) -> None:
    assert call(run, tmp_path / "a") == 0
    assert f"8 images of {drawn.root}: largest absolute difference" in capsys.readouterr().out
    (tmp_path / "photos").mkdir()
    for path in files[:3]:
        shutil.copy(path, tmp_path / "photos")
    (tmp_path / "photos" / "0000.jpg").write_text("damaged")
    assert call(run, tmp_path / "a", "--images", tmp_path / "photos") == 0
    assert f"compared on 3 images of {tmp_path / 'photos'}" in capsys.readouterr().out


def test_without_data_noise_serves_and_that_is_said(run: Path, tmp_path: Path, capsys) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = load(copy / "config.yaml")
    config.data.root = str(tmp_path / "gone")
    save(config, copy / "config.yaml")
    assert call(copy, tmp_path / "a") == 0
    assert f"8 images of noise ({tmp_path / 'gone'} cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["one weight", "nan", "colours", "batches of one"])
def test_a_file_with_other_features_is_not_left_behind(
    run: Path, tmp_path: Path, monkeypatch, capsys, fault: str
) -> None:
    """The reader of the file is made to err, as a bad runner or a bad conversion would."""
    write, true_load = formats.WRITERS["safetensors"]

    def load(path: Path):
        runner = true_load(path)

        def err(images):
            if fault == "colours":
                return runner(images.flip(1))
            if fault == "batches of one" and len(images) > 1:
                return runner(images)
            found = runner(images).copy()
            found[0, 0] = np.nan if fault == "nan" else found[0, 0] + 1e-3 * np.abs(found).max()
            return found

        return err

    monkeypatch.setitem(formats.WRITERS, "safetensors", (write, load))
    (tmp_path / "a").write_text("an earlier file")
    assert call(run, tmp_path / "a") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "not written: its features are not those of the model" in said
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "an earlier file"
    if fault == "one weight":
        assert call(run, tmp_path / "a", "--tolerance", "0.01") == 0


def test_the_tolerance_is_a_share_of_the_largest_feature(run: Path, tmp_path: Path) -> None:
    assert call(run, tmp_path / "a", "--tolerance", "-1") == 2


@pytest.mark.parametrize("lacking", ["onnxscript", "onnxruntime"])
def test_missing_packages_are_named(run: Path, tmp_path: Path, monkeypatch, capsys, lacking: str) -> None:
    true = importlib.import_module

    def refuse(name: str) -> ModuleType:
        if name == lacking:
            raise ImportError(name)
        return true(name)

    if lacking in MISSING or not MISSING:
        monkeypatch.setattr(formats.importlib, "import_module", refuse)
    assert call(run, tmp_path / "a.onnx", name="onnx") == 2
    assert f"--format onnx needs {MISSING[0] if MISSING else lacking}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_graph_is_refused(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    class Odd(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1) * int(images.sum())

    monkeypatch.setattr(formats, "Graph", lambda *_: Odd())
    assert call(run, tmp_path / "a", name="torch_export") == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]  # torch logs, too
    assert len(said) == 1 and "the encoder resnet10 has no graph" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_bad_input_ends_with_one_line(run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    for words, message in [
        ((tmp_path / "none", tmp_path / "a"), "no such folder"),
        ((run, tmp_path / "none" / "a"), "No such file"),
        ((run, tmp_path / "a", "--images", tmp_path / "empty"), "no image in this folder"),
        ((run, tmp_path / "a", "--normalization", "inside"), "--normalization inside: safetensors has no graph"),
    ]:
        assert call(*words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and message in said
