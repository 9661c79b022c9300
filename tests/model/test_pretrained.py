"""reid/model/pretrained.py, fit.py, parts.py, published.py: parts of files, what does not fit, cache, downloads."""

import hashlib
import threading
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from reid.files import hold
from reid.model import published as weights_module
from reid.model.encoders import ImageTransformer, resnet10
from reid.model.pretrained import load_weights
from reid.model.published import cached_file, fetch, url_of
from reid.runs import checkpoint
from reid.runs.checkpoint import Parts, TrainState
from tests.support.models import load_encoder, make_encoder, make_model, model_config, small_vit
from tests.support.narrow import NarrowResNet10, use_narrow_resnet10


def write_weights(path: Path, state: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    use_narrow_resnet10(monkeypatch)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return NarrowResNet10().state_dict()


def assert_encoder_holds(encoder: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, state, suffix):
    """A classifier of another size in the file does not matter."""
    path = write_weights(tmp_path / f"weights{suffix}", {**state, "fc.weight": torch.zeros(7, 64)})
    assert_encoder_holds(make_encoder("resnet10", str(path))[0], state)
    assert_encoder_holds(make_model(5, weights=str(path)).encoder, state)


def test_weights_that_are_not_finite_are_refused(tmp_path, state):
    broken = {**state, "layer1.0.conv1.weight": state["layer1.0.conv1.weight"] * torch.nan}
    path = write_weights(tmp_path / "weights.pth", broken)
    with pytest.raises(ValueError, match=r"weights\.pth: layer1\.0\.conv1\.weight has values that are not finite"):
        make_encoder("resnet10", str(path))


def test_weights_from_a_re_id_model(tmp_path):
    """A checkpoint's model.safetensors will do: its encoder's tensors are called encoder.*."""
    model = make_model(5, pool="gem")
    path = write_weights(tmp_path / "model.safetensors", model.state_dict())
    encoder, _ = make_encoder("resnet10", str(path))
    assert_encoder_holds(encoder, model.encoder.state_dict())


@pytest.mark.parametrize("prefix", ["module.", "backbone.base.", "module.encoder_q."])
@pytest.mark.parametrize("nested", ["state_dict", "model", None])
def test_weights_from_files_of_others(tmp_path, state, prefix, nested):
    """Prefixes as DDP, CTL's and MoCo's code write them, beside tensors that are not the encoder's."""
    file = {f"{prefix}{name}": value for name, value in state.items()} | {"queue": torch.zeros(3)}
    torch.save({nested: file, "epoch": 3} if nested else file, tmp_path / "others.pth")
    assert_encoder_holds(make_encoder("resnet10", str(tmp_path / "others.pth"))[0], state)


def test_a_vit_model_has_the_name_encoder_twice(tmp_path):
    """encoder.encoder.layers...: only the outer one is a prefix."""
    encoder = ImageTransformer(small_vit(), 32, 32)
    whole = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    path = write_weights(tmp_path / "model.safetensors", {**whole, "neck.weight": torch.ones(12)})
    other = ImageTransformer(small_vit(), 32, 32)
    nn.init.zeros_(other.class_token)
    load_weights(other, path, model_config())
    assert_encoder_holds(other, encoder.state_dict())


def test_old_files_of_torchvision(tmp_path, state):
    """Its ViT's file calls layers of the MLP linear_1 and linear_2; old ResNet files have no counters of BatchNorm."""
    vit = ImageTransformer(small_vit(), 32, 32)
    old = {
        n.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): v
        for n, v in vit.state_dict().items()
    }
    assert old.keys() != vit.state_dict().keys()
    other = ImageTransformer(small_vit(), 32, 32)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    load_weights(other, write_weights(tmp_path / "vit.pth", old), model_config())
    assert_encoder_holds(other, vit.state_dict())
    path = write_weights(tmp_path / "r.pth", {n: v for n, v in state.items() if "num_batches" not in n})
    assert_encoder_holds(make_encoder("resnet10", str(path))[0], state)


# What does not fit


def test_weights_of_a_smaller_encoder(tmp_path):
    path = write_weights(tmp_path / "resnet10.pth", resnet10().state_dict())
    said = (
        r"pth: 60 of .* 100 tensors \(43\.9% of its numbers\) fit; at least 90% .* missing is layer1\.1\.conv1\.weight"
    )
    with pytest.raises(ValueError, match=said) as error:
        make_encoder("resnet18", str(path))
    assert "model.encoder (now resnet18)" in str(error.value) and "reid model inspect" in str(error.value)
    encoder, _, loaded = load_encoder("resnet18", str(path), weights_partial=True)
    assert "60 of 100 tensors (43.9% of the encoder's numbers); new: layer1.1.conv1.weight, " in loaded
    assert torch.equal(encoder.layer4[0].conv2.weight, torch.load(path)["layer4.0.conv2.weight"])


def test_weights_of_a_larger_encoder(tmp_path):
    """All tensors of a ResNet-18 are in the file of a ResNet-34, with the same shapes."""
    with torch.device("meta"):
        larger = torchvision.models.resnet34().state_dict()
    path = write_weights(tmp_path / "resnet34.pth", {n: torch.zeros(()).expand(v.shape) for n, v in larger.items()})
    with pytest.raises(ValueError, match=r"100 of .* has \d+ more, the first layer1\.2\..*model\.encoder"):
        make_encoder("resnet18", str(path))


def test_weights_with_a_tensor_of_another_shape(tmp_path, state):
    path = write_weights(tmp_path / "odd.safetensors", {**state, "conv1.weight": torch.zeros(64, 1, 7, 7)})
    with pytest.raises(ValueError, match=r"odd\.safetensors: 59 of .*1 have another shape, the first conv1\.weight; "):
        make_encoder("resnet10", str(path))


def test_weights_of_a_wider_vit_with_old_names(tmp_path):
    wider = {"encoder.layers.encoder_layer_0.mlp.linear_1.weight": torch.zeros(99, 12)}
    path = write_weights(tmp_path / "vit.pth", {"class_token": torch.zeros(1, 1, 12), **wider})
    with pytest.raises(ValueError, match=r"vit\.pth: .* have another shape, the first .*_layer_0\.mlp\.0\.weight;"):
        load_weights(ImageTransformer(small_vit(), 32, 32), path, model_config())


def test_weights_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.pth: no such file; give imagenet, none, a local file"):
        make_encoder("resnet10", str(tmp_path / "nowhere.pth"))


def test_a_few_missing_tensors_are_said(tmp_path, state):
    """Those of 90% of the numbers are enough."""
    some = {name: value for name, value in state.items() if not name.startswith("bn1.")}
    encoder, _, loaded = load_encoder("resnet10", str(write_weights(tmp_path / "x.pth", some)))
    assert (
        "56 of 60 tensors (99.9%" in loaded and "new: bn1.weight, bn1.bias, bn1.running_mean, bn1.running_v" in loaded
    )
    assert torch.equal(encoder.conv1.weight, state["conv1.weight"])


# Parts of a file


def under(prefix: str, state: dict[str, torch.Tensor], add: float = 0.0) -> dict[str, torch.Tensor]:
    return {prefix + name: value + add for name, value in state.items()}


def test_the_encoder_of_the_queries_in_a_file_of_moco(tmp_path, state):
    """encoder_k is its moving average; the alphabet has it first."""
    file = {
        **under("module.encoder_k.", state, 1), **under("module.encoder_q.", state), "module.queue": torch.zeros(8, 9),
        "module.encoder_q.fc.0.weight": torch.zeros(3, 64), "module.encoder_k.fc.0.weight": torch.zeros(3, 64),
    }  # fmt: skip
    torch.save({"epoch": 200, "arch": "resnet10", "state_dict": file, "optimizer": {}}, tmp_path / "moco.pth.tar")
    encoder, _, loaded = load_encoder("resnet10", str(tmp_path / "moco.pth.tar"))
    assert_encoder_holds(encoder, state)
    for part in (
        "under state_dict.module.encoder_q;",
        "module.encoder_k (63)",
        "queue (1)",
        "epoch",
        "encoder_q.fc (3)",
    ):
        assert part in loaded
    average, _ = make_encoder("resnet10", str(tmp_path / "moco.pth.tar"), weights_key="state_dict.module.encoder_k")
    assert torch.equal(average.conv1.weight, state["conv1.weight"] + 1)


TWICE = {
    "student, teacher": lambda state: under("student.backbone.", state) | under("teacher.backbone.", state, 1),
    "state_dict": lambda state: {"state_dict": state, "state_dict_ema": under("", state, 1)},
    "model": lambda state: {"model": state, "ema": {"model": under("", state, 1)}},
    "base_encoder": lambda state: {
        "state_dict": under("module.base_encoder.", state) | under("module.momentum_encoder.", state, 1)
    },
}


CHOICES = {
    "student, teacher": ("student.backbone", "teacher.backbone"),
    "state_dict": ("state_dict", "state_dict_ema"),
    "model": ("model", "ema.model"),
    "base_encoder": ("state_dict.module.base_encoder", "state_dict.module.momentum_encoder"),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_file_that_holds_the_encoder_twice_needs_a_choice(tmp_path, state, name):
    torch.save(TWICE[name](state), tmp_path / "two.pth")
    with pytest.raises(
        ValueError, match=r"two\.pth: the encoder is in this file 2 times: under .*weights_key="
    ) as error:
        make_encoder("resnet10", str(tmp_path / "two.pth"))
    assert all(choice in str(error.value) for choice in CHOICES[name])
    for number, choice in enumerate(CHOICES[name]):
        encoder, _, loaded = load_encoder("resnet10", str(tmp_path / "two.pth"), weights_key=choice)
        assert torch.equal(encoder.conv1.weight, state["conv1.weight"] + number) and f"under {choice}" in loaded


def test_the_top_of_a_file_is_a_choice(tmp_path, state):
    torch.save({**state, "ema": under("", state, 1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"2 times: under \., ema; choose one, e\.g\. model\.weights_key=\."):
        make_encoder("resnet10", str(tmp_path / "x.pth"))
    encoder, _ = make_encoder("resnet10", str(tmp_path / "x.pth"), weights_key=".")
    assert_encoder_holds(encoder, state)
    with pytest.raises(
        ValueError, match=r"under model\.weights_key = net there is no tensor of .*; the file holds conv1"
    ):
        make_encoder("resnet10", str(tmp_path / "x.pth"), weights_key="net")


def test_the_better_copy_is_taken(tmp_path, state):
    """A part with fewer tensors, and one of a larger encoder, are no choices."""
    some, more = dict(list(state.items())[:50]), {**state, "layer1.1.conv1.weight": torch.zeros(1)}
    path = write_weights(tmp_path / "x.pth", under("a.", some, 1) | under("b.", state) | under("c.", more, 1))
    encoder, _, loaded = load_encoder("resnet10", str(path))
    assert_encoder_holds(encoder, state)
    assert "under b;" in loaded and "a (" in loaded and "c (" in loaded


@pytest.mark.parametrize("container", ["teacher", "net", "params", "state_dict_ema", "ema.model.module"])
def test_any_container_is_read(tmp_path, state, container):
    file = state
    for name in reversed(container.split(".")):
        file = {name: file}
    torch.save({**file, "optimizer": {"lr": 1}, "epoch": 3}, tmp_path / "nested.pth")
    encoder, _, loaded = load_encoder("resnet10", str(tmp_path / "nested.pth"))
    assert_encoder_holds(encoder, state)
    assert f"60 tensors under {container}; left out: " in loaded and loaded.endswith("optimizer, epoch")


def test_step_counters_are_no_fit(tmp_path, state):
    counters = {name: value for name, value in state.items() if name.endswith("num_batches_tracked")}
    path = write_weights(tmp_path / "x.pth", {"stem.weight": torch.zeros(3), **counters})
    with pytest.raises(
        ValueError, match=r"x\.pth: it has no tensor of the encoder resnet10.*; the file holds stem, bn1, "
    ):
        make_encoder("resnet10", str(path))


def test_what_is_left_out_is_named(tmp_path, state):
    """Tokens for other purposes, heads and decoders are no layers of the encoder."""
    more = {"mask_token": torch.zeros(1, 1, 9), "sie_embed": torch.zeros(6, 1, 9), "decoder.3.weight": torch.zeros(2)}
    file = under("base.", {**state, **more}) | {"bottleneck.weight": torch.ones(64), "classifier.weight": torch.ones(7)}
    _, _, loaded = load_encoder("resnet10", str(write_weights(tmp_path / "reid.pth", file)), pool="gem")
    assert loaded == (
        f"{tmp_path / 'reid.pth'}: 60 tensors under base; new: avgpool.p; left out: base.fc (2), base.mask_token (1), "
        "base.sie_embed (1), base.decoder (1), bottleneck (1), classifier (1)"
    )


@pytest.mark.parametrize("name", ["layer1.0.se.fc1.weight", "layer5.0.conv1.weight", "reg_token", "norm_pre.weight"])
def test_tensors_that_would_change_the_features_are_not_left_out(tmp_path, state, name):
    path = write_weights(tmp_path / "x.pth", {**state, name: torch.zeros(1)})
    with pytest.raises(ValueError, match=rf"x\.pth: 60 .* has 1 more, the first {name}: .*model\.encoder"):
        make_encoder("resnet10", str(path))
    assert f"without 1 of its layers' tensors ({name})" in load_encoder("resnet10", str(path), weights_partial=True)[2]


# A run


@pytest.fixture
def run(tmp_path) -> Path:
    """With two older checkpoints, and a newest one that is damaged."""
    folder = tmp_path / "run" / "checkpoints"
    for epoch in (1, 2, 3):
        torch.manual_seed(epoch)
        model = make_model(5)
        nn.init.normal_(model.neck.running_mean)
        parts = Parts(model, {"classes": 5}, nn.Linear(1, 1), torch.optim.SGD(model.parameters()))
        checkpoint.save(folder, parts, TrainState(epoch, 0), keep=3)
    damaged = folder / "epoch-0003-step-000000" / "model.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-100] ^= 0x80
    damaged.write_bytes(data)
    return folder.parent


def saved_tensors(run: Path, epoch: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"epoch-{epoch:04d}-step-000000" / "model.safetensors")


@pytest.mark.parametrize("neck", [False, True])
def test_a_run_as_weights(run, neck):
    """Of its newest undamaged checkpoint: the encoder, the neck only by the knob, never the classifier."""
    model = make_model(7, weights=str(run), weights_neck=neck)
    saved = saved_tensors(run, 2)
    assert_encoder_holds(model.encoder, {name.removeprefix("encoder."): value for name, value in saved.items()})
    assert torch.equal(model.neck.running_mean, saved["neck.running_mean"]) == neck
    where = f"{run}/checkpoints/epoch-0002-step-000000/model.safetensors: 60 tensors under encoder"
    left = ", with its neck; left out: classifier (1)" if neck else "; left out: classifier (1), neck (4)"
    assert model.initial_weights == where + left
    older = make_model(7, weights=str(run / "checkpoints" / "epoch-0001-step-000000"))
    assert torch.equal(older.encoder.conv1.weight, saved_tensors(run, 1)["encoder.conv1.weight"])


def test_no_run_as_weights(run, tmp_path):
    damaged = run / "checkpoints" / "epoch-0003-step-000000"
    with pytest.raises(ValueError, match=rf"{damaged}: damaged checkpoint: model\.safetensors has other bytes"):
        make_encoder("resnet10", str(damaged))
    with pytest.raises(ValueError, match=r"model\.weights = .*: a folder without checkpoints/; give a run's folder"):
        make_encoder("resnet10", str(tmp_path))
    bare = write_weights(tmp_path / "bare.pth", NarrowResNet10().state_dict())
    with pytest.raises(
        ValueError, match=r"model\.weights_neck = true: neck\.weight is absent in the file, here \(64,\)"
    ):
        make_model(5, weights=str(bare), weights_neck=True)


# ImageNet


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def test_imagenet_weights_of_the_cache(cache):
    """The first published file of ResNet-18, in the old format that torchvision's are in."""
    torch.manual_seed(2)
    published = torchvision.models.resnet18().state_dict()
    cache.mkdir(parents=True)
    torch.save(published, cache / "resnet18-f37072fd.pth", _use_new_zipfile_serialization=False)
    assert_encoder_holds(make_encoder("resnet18", "imagenet")[0], published)


def test_the_first_published_weights_are_meant():
    assert url_of("resnet50") == "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    assert url_of("vit_b_16").endswith("vit_b_16-c867db91.pth")


def test_no_imagenet_weights_for_resnet10():
    with pytest.raises(ValueError, match=r"no ImageNet weights for resnet10 to fetch; use model\.weights = none"):
        make_encoder("resnet10", "imagenet")


def test_imagenet_weights_without_internet(monkeypatch, cache):
    def download(*args, **knobs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(ValueError, match="resnet18") as error:
        make_encoder("resnet18", "imagenet")
    assert str(error.value) == (
        f"model.weights = imagenet: resnet18-f37072fd.pth is not in {cache} and cannot be fetched (<urlopen error no "
        "route>); on a machine with internet run `reid model fetch resnet18` and copy the file into that "
        "folder, or give model.weights a local file, or none"
    )
    assert list(cache.iterdir()) == []


def test_a_download_is_checked_by_the_hash_in_its_name(monkeypatch, cache, tmp_path):
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    for name, content in (("good", b"weights"), ("bad", b"cut off")):
        source = tmp_path / name / f"net-{digest}.pth"
        source.parent.mkdir()
        source.write_bytes(content)
        monkeypatch.setattr(weights_module, "url_of", lambda name, source=source: source.as_uri())
        if name == "good":
            assert fetch("net").read_bytes() == b"weights"
            fetch("net").unlink()
        else:
            with pytest.raises(ValueError, match=r"cannot be fetched \(invalid hash value"):
                fetch("net")
    assert list(cache.iterdir()) == []


def test_one_of_many_downloads(monkeypatch, cache, capfd):
    """Locks of two open files exclude each other within a process, too, so threads stand for ranks here."""
    downloads, found = [], []
    none_has_begun, one_fetches = threading.Barrier(4, timeout=300), threading.Barrier(4, timeout=300)

    def hold_together(path, on_wait):
        none_has_begun.wait()  # each has looked for the file
        return hold(path, lambda holder: (on_wait(holder), one_fetches.wait()))

    def download(url, path, **knobs):
        downloads.append(url)
        if len(downloads) == 1:
            one_fetches.wait()  # the other three wait for its lock
        Path(path).write_bytes(b"weights")

    monkeypatch.setattr(weights_module, "hold", hold_together)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    ranks = [threading.Thread(target=lambda: found.append(fetch("resnet18"))) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert downloads == [url_of("resnet18")]
    assert found == [cached_file("resnet18")] * 4
    assert [path.name for path in cache.iterdir()] == ["resnet18-f37072fd.pth"]
    assert capfd.readouterr().out == ""
