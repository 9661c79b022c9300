"""A model on the hub: uploaded to and fetched from a loopback server, and used as if it were a run. No network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from reid import Embedder
from reid.config import EvaluateConfig, load, parse
from reid.data.manifest import load_manifest
from reid.evaluation.evaluate import start
from reid.export.__main__ import main
from reid.model.hub import resolve
from reid.model.pretrained import initialize
from reid.model.saved import MODEL
from reid.reports.report import Report
from reid.runs.models import find_run, read_origin
from reid.search import __main__ as search
from tests.support.drawn import Drawn
from tests.support.hub_server import KEY, Hub, serve
from tests.support.models import model_config
from tests.support.narrow import use_narrow_resnet10
from tests.support.runs import load_once, make_run
from tests.support.status import status_of

ORG = "me/small"


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        load_once(patch)
        use_narrow_resnet10(patch)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, drawn: Drawn) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", drawn, model__nested=[16])


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as the hub has it."""
    out = tmp_path_factory.mktemp("models") / "m"
    assert status_of(main, "--checkpoint", run, "--format", "hub", "--out", out) == 0
    return out


def point_to(url: str, patch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT does before the library is imported."""
    patch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serve() as (hub, url):
        point_to(url, monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", KEY)
        yield hub


def test_a_model_goes_to_the_hub_and_comes_back(run: Path, folder: Path, hub: Hub, drawn: Drawn, tmp_path, capsys):
    """The model card that was edited is kept; what is fetched is used as a run is."""
    (folder / "README.md").write_text((folder / "README.md").read_text() + "license: ours, of ORG/NAME\n")
    assert status_of(main, "--checkpoint", folder, "--push", ORG, "--private") == 0
    assert f"load it as hf:{ORG}" in capsys.readouterr().out and hub.private[ORG]
    assert set(hub.files[ORG]) == {"model.safetensors", "about.json", "README.md"}
    card = hub.files[ORG]["README.md"].decode()
    assert "license: ours, of me/small" in card and f'Embedder.load("hf:{ORG}")' in card and "ORG/NAME" not in card

    wanted, photos = Embedder.load(run, device="cpu"), sorted(drawn.raw.glob("query/*.jpg"))[:4]
    for name in (f"hf:{ORG}", f"hf:{ORG}@main", folder):
        found = Embedder.load(name, device="cpu")
        assert found.fingerprint == wanted.fingerprint and np.array_equal(found.embed(photos), wanted.embed(photos))
    cut = (Embedder.load(name, device="cpu", flip=True, dimensions=16) for name in (f"hf:{ORG}", run))
    assert len({embedder.fingerprint for embedder in cut}) == 1  # the lengths it was trained for are published, too

    index, out = tmp_path / "index", tmp_path / "a.safetensors"
    words = ["--checkpoint", f"hf:{ORG}", "--device", "cpu"]
    assert status_of(search.main, "index", *words, "--images", drawn.root, "--out", index) == 0
    assert status_of(search.main, "query", index, photos[0], "--checkpoint", run, "--device", "cpu") == 0
    assert status_of(main, "--checkpoint", f"hf:{ORG}", "--format", "safetensors", "--out", out) == 0
    about = json.loads((tmp_path / "a.safetensors.json").read_text())
    assert about["weights"] == read_origin(find_run(str(run), "newest")[1]).weights


def test_a_fetched_model_needs_no_network(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files[ORG] = {path.name: path.read_bytes() for path in folder.iterdir()} | {"run_me.py": b"raise SystemExit"}
    fetched = resolve(f"hf:{ORG}")
    assert {path.name for path in Path(fetched).iterdir()} == {path.name for path in folder.iterdir()}  # nothing else
    point_to("http://127.0.0.1:9", monkeypatch)
    assert resolve(f"hf:{ORG}") == fetched
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve(f"hf:{ORG}") == fetched
    with pytest.raises(ValueError, match=r"hf:me/other is not in the cache .* copy the model's folder"):
        resolve("hf:me/other")


def test_training_starts_from_a_published_model(folder: Path, hub: Hub) -> None:
    hub.files[ORG] = {path.name: path.read_bytes() for path in folder.iterdir()}
    encoder = Embedder.load(folder, device="cpu").model.encoder
    with torch.no_grad():
        for value in encoder.state_dict().values():
            value.zero_()
    said = initialize(encoder, model_config("resnet10", f"hf:{ORG}"))
    saved = load_file(folder / MODEL)
    assert MODEL in said
    assert all(torch.equal(value, saved[f"encoder.{name}"]) for name, value in encoder.state_dict().items())


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Report]:
    """What evaluations report, without the figures, which take most of the time."""
    found: list[Report] = []

    def keep(folder: Path, report: Report) -> Path:
        found.append(report)
        return folder / "report.html"

    monkeypatch.setattr("reid.evaluation.dataset_report.write_report", keep)
    return found


def test_an_evaluation_of_a_published_model(folder: Path, run, hub: Hub, drawn, tmp_path, capsys, reports) -> None:
    hub.files[ORG] = {path.name: path.read_bytes() for path in folder.iterdir()}
    words = ["--run", f"hf:{ORG}", "--wandb=off", "--workers=0", "--protocols=[image]", "--verification=true"]
    for lacking in ([], ["--data", str(drawn.root)]):
        with pytest.raises(SystemExit):
            start(parse(EvaluateConfig, [*words, *lacking]))
        assert ("--out is missing" if lacking else "--data is missing") in capsys.readouterr().err
    start(parse(EvaluateConfig, [*words, "--data", str(drawn.root), "--out", str(tmp_path / "report")]))
    (report,) = (path.parent for path in (tmp_path / "report").glob("*/metrics.json"))
    made = json.loads((report / "thresholds.json").read_text())
    assert made["model"] == read_origin(find_run(str(run), "newest")[1]).weights
    assert reports[0].facts["run"] == f"hf:{ORG}" and not any("Across domains" in note for note in reports[0].notes)
    with pytest.raises(SystemExit):
        start(parse(EvaluateConfig, [*words, "--data", str(drawn.root), "--out", str(tmp_path), "--checkpoint=best"]))
    assert "--checkpoint=best" in capsys.readouterr().err
    dataset = load_manifest(str(drawn.root)).fingerprint
    assert json.loads((folder / "about.json").read_text())["data"] == [dataset]


def test_the_model_card_has_the_metrics_of_this_checkpoint(run: Path, tmp_path: Path, reports) -> None:
    copy, out = Path(shutil.copytree(run, tmp_path / "run")), tmp_path / "m"
    assert status_of(main, "--checkpoint", copy, "--format", "hub", "--out", out) == 0
    assert "no report on this checkpoint" in (out / "README.md").read_text()
    words = ["--run", str(copy), "--wandb=off", "--workers=0"]
    start(parse(EvaluateConfig, words))
    (report,) = (path.parent for path in (copy / "eval").glob("*/metrics.json"))
    (report / "thresholds.json").write_text('{"open_set": {"thresholds": {"0.1": {"threshold": 0.5}}}}')
    assert status_of(main, "--checkpoint", copy, "--format", "hub", "--out", out) == 0
    card = (out / "README.md").read_text()
    metrics = json.loads((report / "metrics.json").read_text())
    for protocol, found in metrics.items():
        row = next(line for line in card.splitlines() if f"| {protocol} |" in line)
        assert f"| {100 * found['mAP']:.1f} |" in row and f"| {found['gallery_size']:,} |" in row
    assert card.startswith("---\n") and "0.5000 for a false alarm rate of 0.1" in card and str(tmp_path) not in card
    assert load(copy / "config.yaml").model.encoder in card


def damage(folder: Path, **changes: object) -> None:
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps({**about, **changes}))


def other_weights(folder: Path) -> None:
    save_file({"encoder.x": torch.zeros(1)}, folder / MODEL)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "about.json").write_text("[]"), "not the description of a model"),
        (lambda f: (f / "about.json").write_text("{"), "not the description of a model"),
        (lambda f: damage(f, sha256="0"), "has other bytes"),
        (other_weights, "has other bytes"),
        (lambda f: damage(f, height="a"), "data.height"),
        (lambda f: damage(f, model={"encoder": "resnet9"}), "resnet9"),
        (lambda f: damage(f, model={"encoder": "resnet10", "later": 1}), "later"),
        (lambda f: damage(f, model={"encoder": "resnet18"}), "does not hold the model"),
    ],
)
def test_a_damaged_model_is_refused(folder: Path, tmp_path: Path, harm, message: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "m"))
    harm(copy)
    with pytest.raises(ValueError, match=message) as raised:
        Embedder.load(copy, device="cpu")
    assert str(copy) in str(raised.value)


def test_what_the_hub_refuses_is_one_line(folder: Path, run: Path, hub: Hub, monkeypatch, tmp_path, capsys) -> None:
    hub.files["me/foreign"] = {"pytorch_model.bin": b"pickled"}
    hub.files[ORG] = {path.name: path.read_bytes() for path in folder.iterdir()}
    fetch = ["--format", "safetensors", "--out", tmp_path / "a", "--checkpoint"]
    upload = ["--checkpoint", folder, "--push"]

    def check(*words: object, says: str) -> None:
        assert status_of(main, *words) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and says in said, said

    check(*fetch, "hf:me/none", says="no such model, or it is private")
    check(*fetch, f"hf:{ORG}@v9", says="no such revision")
    check(*fetch, "hf:bad name", says="not a name of the hub")
    check(*fetch, "hf:me/foreign", says="is no model of this program")
    check(*upload, "small", says="--push small: give ORG/NAME")
    check(*upload, "a/b/c", says="not a name of the hub")
    check(*upload, ORG, "--format", "onnx", says="--format onnx")
    check(*upload, ORG, "--half", says="--half")
    check("--checkpoint", folder, "--private", "--format", "hub", "--out", tmp_path / "b", says="--push")
    check("--checkpoint", folder, says="--format")
    monkeypatch.setenv("HF_TOKEN", "hf_of_someone_else")
    check(*upload, ORG, says="write access")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    check(*upload, ORG, says="hf auth login")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: KEY)
    monkeypatch.setenv("HF_TOKEN", KEY)
    point_to("http://127.0.0.1:9", monkeypatch)
    check(*fetch, "hf:me/none", says="cannot be reached")
    check(*upload, ORG, says="cannot be reached")
