"""reid/model/weights_file.py: what is read, without running its code, and what wrong files are said to be."""

from __future__ import annotations

import argparse
import pickle
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reid.model.weights_file import read_file
from tests.support.drawn import Bomb

TENSORS = {"conv1.weight": torch.arange(600.0), "epoch": torch.tensor(3)}


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_and_arrays_of_numpy_beside_tensors(tmp_path: Path, zipped: bool) -> None:
    """As torchreid's and others' trainers save them."""
    scalars = [np.float64(0.87), np.float32(0.5), np.int64(3), np.bool_(True), np.str_("x"), np.float16(1)]
    more = {
        "rank1": scalars,
        "curve": np.arange(3),
        "args": argparse.Namespace(lr=np.float64(1)),
        "dtype": np.dtype("i4"),
    }
    path = tmp_path / "model.pth.tar-60"
    torch.save({"state_dict": TENSORS, **more}, path, _use_new_zipfile_serialization=zipped)
    content, header = read_file(path)
    assert torch.equal(content["state_dict"]["conv1.weight"], TENSORS["conv1.weight"]) and header == {}
    assert content["rank1"] == scalars and content["curve"].tolist() == [0, 1, 2]


def test_numpy_of_both_major_versions(tmp_path: Path) -> None:
    """numpy 1 names its module numpy.core, numpy 2 numpy._core."""
    path = tmp_path / "x.pth"
    torch.save({"rank1": np.float64(0.5)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert (b"numpy._core.multiarray" in data) != (b"numpy.core.multiarray" in data)
    other = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(other if other != data else data.replace(b"numpy.core.multiarray", b"numpy._core.multiarray"))
    assert read_file(path)[0]["rank1"] == 0.5


@pytest.mark.parametrize("zipped", [True, False])
def test_what_trainers_save_beside_the_tensors(tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's callbacks by class and its settings, a configuration of omegaconf and yacs, paths, an enumeration."""
    made = []
    for module, name, base in (
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint", object), ("yacs.config", "CfgNode", dict),
        ("pytorch_lightning.utilities.parsing", "AttributeDict", dict), ("omegaconf.dictconfig", "DictConfig", object),
        ("lightning.pytorch.trainer.states", "TrainerFn", str),
    ):  # fmt: skip
        kind = type(name, (base,), {"__module__": module})
        monkeypatch.setitem(sys.modules, module.split(".")[0], types.ModuleType(module))
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: kind}))  # type: ignore[arg-type]
        made.append(kind)
    checkpoint, node, settings, omega, state = made
    config = omega()
    config.__dict__ = {"_content": {"lr": 1}, "_parent": None, "_metadata": (dict, Any)}
    file = {
        "state_dict": OrderedDict(TENSORS), "callbacks": {checkpoint: {"best": 0.5}},
        "hyper_parameters": settings(lr=1), "config": config, "cfg": node(a=node(b=1)), "path": Path("runs"),
        "fn": state("fit"), "log": defaultdict(list),
    }  # fmt: skip
    path = tmp_path / "last.ckpt"
    torch.save(file, path, _use_new_zipfile_serialization=zipped)
    for module in {kind.__module__ for kind in made}:
        monkeypatch.delitem(sys.modules, module)
    content, _ = read_file(path)
    assert torch.equal(content["state_dict"]["conv1.weight"], TENSORS["conv1.weight"])
    assert content["hyper_parameters"] == {"lr": 1} and content.keys() == file.keys()


def write_safetensors(path: Path) -> None:
    save_file(TENSORS, path)


def write_torch(path: Path) -> None:
    torch.save(TENSORS, path)


def write_torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.npy", b"1")


def write_bomb(path: Path) -> None:
    torch.save({"conv1.weight": Bomb(path.with_name("ran"))}, path)


def write_plain_bomb(path: Path) -> None:
    path.write_bytes(pickle.dumps({"conv1.weight": Bomb(path.with_name("ran"))}, protocol=2))


def cut(write: Callable[[Path], None], size: int) -> Callable[[Path], None]:
    def write_start(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[:size])

    return write_start


def text(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


PAGE, LFS = (
    b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256",
)
WRONG = [
    (".pth", text(b""), "it is empty"),
    (".safetensors", text(b""), "it is empty"),
    (".pth", text(PAGE), "it is a web page"),
    (".safetensors", text(PAGE), "it is a web page"),
    (".pth", text(LFS), "it is a pointer of Git LFS"),
    (".safetensors", text(LFS), "it is a pointer of Git LFS"),
    (".pth", text(b"conv1: 3 weights"), "it is text, and begins with 'conv1: 3 weights'"),
    (".safetensors", text(b"no weights"), "it is text"),
    (".pth", text(b"\x80\x02broken"), "8 bytes are damaged"),
    (".safetensors", text(b"\x90\x00\x00\x00\x00\x00\x00\x00{broken"), "15 bytes are damaged, cut off"),
    (".pth", cut(write_torch, 900), "900 bytes are damaged, cut off"),
    (".safetensors", cut(write_safetensors, 900), "900 bytes are damaged, cut off"),
    (".safetensors", cut(write_safetensors, 30), "30 bytes are damaged, cut off"),
    (".pth", write_safetensors, "name it .safetensors"),
    (".safetensors", write_torch, "name it .pth"),
    (".pth", write_torchscript, "TorchScript"),
    (".pth", write_zip, "bytes are damaged, cut off or of another kind"),
    (".pth", write_bomb, "only code can rebuild"),
    (".pth", write_plain_bomb, "only code can rebuild"),
    (".pth", lambda path: torch.save(torch.zeros(3), path), "it holds a Tensor, not tensors by name"),
    (".pth", lambda path: torch.save(torch.nn.Linear(1, 1), path), "it holds a torch.nn.modules.linear.Linear"),
]


@pytest.mark.parametrize(("suffix", "write", "said"), WRONG)
def test_a_wrong_file_is_called_what_it_is(
    tmp_path: Path, suffix: str, write: Callable[[Path], object], said: str
) -> None:
    """Our own message: torch's tells the user to load with weights_only=False, which runs code."""
    path = tmp_path / f"x{suffix}"
    write(path)
    with pytest.raises(ValueError, match=rf"^model\.weights = .*x{suffix}: not a file of tensors: [ -~]*$") as error:
        read_file(path)
    assert said in str(error.value) and "weights_only" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_every_cut_of_a_file_is_one_line(tmp_path: Path) -> None:
    for suffix, write in ((".pth", write_torch), (".safetensors", write_safetensors)):
        path = tmp_path / f"x{suffix}"
        write(path)
        data = path.read_bytes()
        for size in range(0, len(data), 97):
            path.write_bytes(data[:size])
            with pytest.raises(ValueError, match=r"^[ -~]*$"):
                read_file(path)
