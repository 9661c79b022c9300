"""reid/config/parsing.py: how flags may be written."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from reid.config import Config, EvaluateConfig, LossConfig, load, normalize_flags, parse, save


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["--batch-size=4"], ["--batch_size=4"]),
        (["--batch-size", "4"], ["--batch_size", "4"]),
        (["--data.val-identities=4", "--on-d"], ["--data.val_identities=4", "--on_d"]),
        (["--out=my-index --batch-size=4"], ["--out=my-index --batch-size=4"]),
        (["query", "my-index", "-x-y", "--out", "a-b.html"], ["query", "my-index", "-x-y", "--out", "a-b.html"]),
        (["--batch-size=4", "--", "--a-photo.jpg"], ["--batch_size=4", "--", "--a-photo.jpg"]),
        (("--", "--", "--a-b"), ["--", "--", "--a-b"]),
        ([], []),
    ],
)
def test_flags_may_be_written_with_dashes(typed: list[str], read: list[str]) -> None:
    assert normalize_flags(typed) == read


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--dry-run"], {"dry_run": True}),
        (["--dry_run", "--name", "x"], {"dry_run": True, "name": "x"}),
        (["--dry-run=false"], {"dry_run": False}),
        (["--dry-run", "no", "--timeout-s=5"], {"dry_run": False, "timeout_s": 5}),
    ],
)
def test_flags_of_training(words: list[str], wanted: dict[str, object]) -> None:
    found = parse(Config, words)
    assert {name: getattr(found, name) for name in wanted} == wanted


def test_flags_of_sections() -> None:
    config = parse(Config, ["--speed.compile", "--loss.triplet-margin=null", "--optim.milestones", "3", "5"])
    assert (config.speed.compile, config.loss.triplet_margin, config.optim.milestones) == (True, None, [3, 5])
    for words, root, shares in (
        (["--data.root", "a", "b,c", "--batch.shares", "8", "8"], ["a", "b,c"], [8, 8]),
        (["--data.root=[a,b]", "--batch.shares=12,4"], ["a", "b"], [12, 4]),
        (["--data.root=a,b", "--batch.shares=null"], "a,b", None),
        (["--data.root", "a", "--batch.shares=[16]"], "a", [16]),
        (["--data.root", "a", "--batch.shares", "16"], "a", [16]),
        (["--data.root", "a", "--batch.shares=None"], "a", None),
    ):
        config = parse(Config, words)
        assert (config.data.root, config.batch.shares) == (root, shares)
    assert parse(EvaluateConfig, ["runs/a", "--data", "b"]).data == ["b"]
    assert parse(Config, ["--data.mean", "0.5", "0.5", "0.4", "--data.std=null"]).data.mean == (0.5, 0.5, 0.4)


@pytest.mark.parametrize(
    "words",
    [
        ["--run", "runs/x", "--rerank"],
        ["runs/x", "--rerank"],
        ["--rerank", "runs/x"],
        ["--ranks=1,5", "--save-features=false", "runs/x", "--rerank"],
    ],
)
def test_the_run_of_an_evaluation_needs_no_flag(words: list[str]) -> None:
    options = parse(EvaluateConfig, words)
    assert (options.run, options.rerank) == ("runs/x", True)


def test_a_file_extends_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base.yaml").write_text("seed: 3\nloss:\n  w1: 0.3\n  margin: 2.0\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.yaml").write_text("base: ../base.yaml  # the recipe\nloss:\n  w1: 3.0e-1\n  margin: 1.0\n")
    (tmp_path / "b.yaml").write_text("base: more/a.yaml\nseed: 4\n")
    config = parse(Config, [f"--config={tmp_path / 'b.yaml'}", "--loss.w1=0.5"])
    assert (config.seed, config.loss.w1, config.loss.margin) == (4, 0.5, 1.0)
    for text, reason in (
        ("base: none.yaml", "base: none.yaml: no such file"),
        ("base: c.yaml", "base: c.yaml: it extends itself"),
        ("base: base.yaml\nloss:\n  margn: 1", "c.yaml: unknown knob 'loss.margn'"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(SystemExit):
            parse(Config, ["--config", str(tmp_path / "c.yaml")])
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize("words", [["runs/a", "runs/b"], ["--run", "runs/a", "runs/b"], ["--rerank", "0", "--run=a"]])
def test_a_word_too_many_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(EvaluateConfig, words)
    assert "runs/b" in capsys.readouterr().err or words[1] == "0"


def test_errors_name_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("loss:\n  margin: -3.0\n")
    (tmp_path / "b.yaml").write_text('base: "a.yaml"\nseed: 3\n')
    (tmp_path / "c.yaml").write_text("loss: [\n")
    for file in ("a.yaml", "b.yaml"):
        with pytest.raises(ValueError, match=rf"{file}: loss\.margin = -3\.0 must be"):
            parse(Config, [f"--config={tmp_path / file}"])
        with pytest.raises(ValueError, match=rf"{file}: loss\.margin = -3\.0 must be"):
            load(tmp_path / file)
    with pytest.raises(ValueError, match=r"^loss\.margin = -2\.0 must be"):
        parse(Config, [f"--config={tmp_path / 'a.yaml'}", "--loss.margin=-2"])
    with pytest.raises(SystemExit):
        parse(Config, [f"--config={tmp_path / 'c.yaml'}"])
    assert "c.yaml: not YAML" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"c\.yaml: not YAML"):
        load(tmp_path / "c.yaml")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefg")
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("data: null", "data"),
        ("data:", "data"),
        ("loss: []", "loss"),
        ("loss: 3", "loss"),
        ("loss: text", "loss"),
        ("data: [{height: 3}]", "data"),
        ("data: !!set {root}", "set"),
        ("- seed", "knobs and sections"),
        ("3", "knobs and sections"),
        ("text", "knobs and sections"),
        ("3: 4", "3"),
        ("null: 4", "None"),
        ("'': 4", "''"),
        ("config: x.yaml", "config"),
        ("loss:\n  margin:\n    x: 3", "loss.margin"),
        ("seed: 1\nseed: 2", "seed"),
        ("loss: {w1: 0.1}\nloss: {w1: 0.2}", "loss"),
        ("loss.w1: 0.1\nloss: {w1: 0.2}", "loss.w1"),
        ("data: &a\n  root: *a", "alias"),
        ("&a [*a]", "alias"),
        (BOMB, "alias"),
        ("[" * 500, "not YAML"),
        (f"name: {'[' * 300}{']' * 300}", "alias"),
        ("loss:\n\tw1: 0.3", "tabs"),
        ("name: caf\u00e9".encode("latin-1"), "UTF-8"),
        ("seed: 3".encode("utf-16"), "UTF-8"),
        ("seed: 1\n---\nseed: 2", "not YAML"),
        ("seed: !!float ''", "not YAML"),
        ("name: !!python/object/apply:os.system [ls]", "not YAML"),
        ("name: null", "name = null"),
        ("optim: {milestones: null}", "optim.milestones = null"),
        (f"seed: 1{'0' * 5000}", "not YAML"),
    ],
)
def test_a_file_of_another_shape_is_refused_by_name(tmp_path: Path, content: str | bytes, reason: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"x\.yaml.*{re.escape(reason)}"):
        load(path)


def test_what_files_of_people_may_hold(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_bytes(b"\xef\xbb\xbfseed: 3\r\nloss:\r\n  w1: 1e-1\r\n")
    (tmp_path / "x.yaml").write_bytes(
        b"\xef\xbb\xbf{base: base.yaml, name: '1e3', batch: {images: &k 2}, data: {height: *k}}"
    )
    config = load(tmp_path / "x.yaml")
    assert (config.seed, config.loss.w1, config.name, config.data.height) == (3, 0.1, "1e3", 2)
    save(config, tmp_path / "saved.yaml")
    assert load(tmp_path / "saved.yaml") == config
    for content in ("", "null", "# nothing"):
        (tmp_path / "empty.yaml").write_text(content)
        assert load(tmp_path / "empty.yaml") == Config()


def test_null_is_spelled_as_yaml_and_as_python_do() -> None:
    for word in ("null", "None"):
        assert parse(Config, [f"--loss.triplet_margin={word}"]).loss.triplet_margin is None
        assert parse(Config, ["--loss.triplet_margin", word]).loss.triplet_margin is None
        with pytest.raises(SystemExit):
            parse(Config, [f"--seed={word}"])


def test_a_type_error_says_what_the_knob_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, reason in {
        "--loss.triplet_margin=x": "loss.triplet_margin = x: give a number, or null",
        "--batch.short=drop": "batch.short = drop: give one of keep, repeat",
        "--optim.milestones=[a]": "optim.milestones = a: give a list, each a whole number",
        "--batch.streams=many": "batch.streams = many: give a whole number, or auto",
        "--frobnicate=1": "--frobnicate=1",
        "--loss=null": "loss is a section",
    }.items():
        with pytest.raises(SystemExit):
            parse(Config, [flag])
        said = capsys.readouterr().err
        assert reason in said and "class" not in said and "nearest" not in said


@pytest.mark.parametrize("word", ["--loss.w1=!!float ''", "--loss={w1: !!float ''}", "--config=\0"])
def test_a_value_that_cannot_be_read_is_no_stack_trace(word: str) -> None:
    with pytest.raises(ValueError):
        parse(Config, [word])


def test_a_knob_of_an_earlier_version_keeps_its_meaning(tmp_path):
    file = tmp_path / "old.yaml"
    for written, space in (("true", "unit"), ("false", "raw")):
        file.write_text(f"loss:\n  normalize: {written}\n")
        assert parse(Config, [f"--config={file}"]).loss.space == space
        assert parse(Config, ["--loss.space=neck", f"--loss.normalize={written}"]).loss.space == space
    assert parse(Config, ["--loss.normalize", "--loss.relative=false"]).loss.space == "unit"
    file.write_text("loss: {relative: false}")
    assert parse(Config, [f"--config={file}"]).loss == LossConfig(triplet_space="raw")
    with pytest.raises(ValueError, match=r"loss\.relative = true: this is no longer supported"):
        parse(Config, ["--loss.relative"])
    file.write_text("loss:\n  normalize: true\n  space: neck\n")
    with pytest.raises(SystemExit):
        parse(Config, [f"--config={file}"])
    with pytest.raises(ValueError, match=r"loss\.normalize = maybe"):
        parse(Config, ["--loss.normalize=maybe"])
