"""reid/config/parsing.py: how flags may be written."""

from pathlib import Path

import pytest

from reid.config import Config, EvaluateConfig, load, normalize_flags, parse


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
    (tmp_path / "more" / "a.yaml").write_text("base: ../base.yaml  # the recipe\nloss:\n  w1: 3.0e-1\n  margin: 4.0\n")
    (tmp_path / "b.yaml").write_text("base: more/a.yaml\nseed: 4\n")
    config = parse(Config, [f"--config={tmp_path / 'b.yaml'}", "--loss.w1=0.5"])
    assert (config.seed, config.loss.w1, config.loss.margin) == (4, 0.5, 4.0)
    for text, reason in (
        ("base: none.yaml", "base: none.yaml: no such file"),
        ("base: c.yaml", "base: c.yaml: it extends itself"),
        ("base: base.yaml\nloss:\n  margn: 1", "c.yaml: Group 'loss' does not accept option 'margn'"),
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
