"""Check the documentation: links resolve, named files exist, and commands parse."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import itertools
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command_parser

from reid import __main__ as reid_program
from reid import config
from reid.config import Config, EvaluateConfig, check, check_evaluation, parse
from reid.export import __main__ as export
from reid.launcher import take_processes
from reid.metrics import bootstrap, retrieval
from reid.model import __main__
from reid.search import __main__ as search
from reid.sweeps import __main__ as sweep_program
from shards.__main__ import main as shards_main
from tests.support import pages
from tests.support.drawn import Drawn
from tests.support.features import random_split
from tests.support.programs import run_program
from tests.support.undrawn import leave_out_pictures, without_pictures

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONFIGURATION = [path for folder in ("configs", "launch", "slurm") for path in sorted((ROOT / folder).rglob("*.*"))]
# Commands that no test can parse, and why. Only the files that they name are checked.
UNCHECKED = {
    "wandb login": "needs an account at W&B",
    "wandb sweep": "needs W&B's server; tests/sweeps/test_sweep.py checks the file",
    "wandb agent": "needs W&B's server",
    "$EDITOR": "is interactive",
    "source": "needs a cluster",
    "git clone": "needs a repository elsewhere",
    "cd": "is the shell's",
    "docker": "may be missing where tests run",
    "apptainer": "may be missing where tests run",
    "srun": "needs a cluster",
    "tar": "test_the_tutorial_runs runs it",
}


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text())


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_in_backquotes_exist(page: Path) -> None:
    for span in re.findall(r"`([^`]+)`", prose(page).replace("\n", " ")):
        if re.fullmatch(r"(reid|shards|tests|docs|configs|launch|slurm|examples)/[\w./*-]+", span):
            assert list(ROOT.glob(span)), span
        if span.startswith("make "):
            assert span.split()[1] in targets(), span
        if span.startswith("python -m ") and "…" not in span:
            name = span.split()[2].replace(".", "/")
            places = (ROOT / f"{name}.py", ROOT / name / "__main__.py")
            assert name in {"pytest", "build"} or any(path.is_file() for path in places), span
        if re.fullmatch(r"(reid|shards)(\.\w+)+", span):
            pkgutil.resolve_name(span)


# Links


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub generates from the headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        repeats = (f"{slug}-{number}" for number in range(1, 99))
        found.add(slug if slug not in found else next(name for name in repeats if name not in found))
    return found


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    for target in links(page):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        place = page.parent / file if file else page
        assert place.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(place), f"{target}: {place.name} has {sorted(anchors(place))}"


def test_the_index_links_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    assert {(index.parent / target).resolve() for target in links(index)} == {*PAGES, NOTEBOOK} - {index}


def test_architecture_lists_every_package() -> None:
    rows = re.findall(r"^\| \d \| `(reid/[\w.]+)", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    parts = {name_of(path) for path in (ROOT / "reid").iterdir() if not path.name.startswith(("__", "py.typed"))}
    assert sorted(rows) == sorted(parts)


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    text = "# A `code`, and [a link](x.md)!\n## Twice\n## Twice\n```\n# no heading\n```\n## `ctl_published`: two\n"
    (tmp_path / "x.md").write_text(text)
    assert anchors(tmp_path / "x.md") == {"a-code-and-a-link", "twice", "twice-1", "ctl_published-two"}


# Commands


def split_commands(text: str) -> Iterator[str]:
    """Split into single commands: drop comments, join continued lines, split at `&&`, make `<a b>` one word."""
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"<[^<>]*>", "PLACEHOLDER", line)
        line = re.sub(r"^\w+=\$\((.*)\)$", r"\1", line)  # job=$(sbatch ...)
        for between, words in itertools.groupby(
            shlex.split(line, comments=True), key=lambda word: word in ("&&", "||")
        ):
            if not between:
                yield shlex.join(words)


def documented() -> list[tuple[str, str]]:
    """Return (file, command) for every code block of a page and every indented command in a file's first comment."""
    texts = [(page, text) for page in PAGES for text in blocks(page, "", "bash") if not text.startswith("{")]  # JSON
    for path in CONFIGURATION:
        header = "".join(itertools.takewhile(lambda line: line.startswith("#"), path.open()))
        texts.append((path, "\n".join(re.findall(r"^# {3,}(.*)$", header, re.MULTILINE))))
    return [(name_of(path), command) for path, text in texts for command in split_commands(text)]


def targets() -> set[str]:
    return set(re.findall(r"^([\w./-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check_command(command: str) -> None:
    """Raise unless every program, file and flag of the command exists."""
    words = shlex.split(command)
    while re.match(r"\w+=", words[0]):  # environment
        words = words[1:]
    program, *words = words
    program = program.removeprefix(".venv/bin/").removeprefix(f"{Path(sys.executable).parent}/")
    for word in words:
        path = word.partition("=")[2] if word.startswith("--") else word
        if re.match(r"(configs|launch|slurm|tests|docs|examples)/", path):
            assert (ROOT / path).exists(), f"{path}: no such file"
    if not any(f"{' '.join([program, *words])} ".startswith(f"{prefix} ") for prefix in UNCHECKED):
        assert program in PROGRAMS, f"{program}: add a check, or a reason to UNCHECKED"
        PROGRAMS[program](words)


def check_make(words: Sequence[str]) -> None:
    variables = dict(word.split("=", 1) for word in words if "=" in word)
    assert {word for word in words if "=" not in word} <= targets()
    known = re.findall(r"^(\w+) [:?]?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert variables.keys() <= set(known), f"the Makefile has {known}"
    check_train(
        [f"--config={variables.get('CONFIG', 'configs/market1501.yaml')}", *shlex.split(variables.get("FLAGS", ""))]
    )


def check_train(words: Sequence[str]) -> None:
    check(parse(Config, words), world_size=1)


def check_evaluate(words: Sequence[str]) -> None:
    check_evaluation(parse(EvaluateConfig, words))


def check_launch(words: Sequence[str]) -> None:
    assert words[0] == "launch"
    options = launch_command_parser().parse_args(words[1:])
    assert options.config_file is None or (ROOT / options.config_file).is_file(), options.config_file
    check_python([options.training_script, *options.training_script_args])


def check_python(words: Sequence[str]) -> None:
    if words[0] == "-m":
        name, words = words[1], words[2:]
    else:
        assert (ROOT / words[0]).is_file(), words[0]
        name, words = words[0].removesuffix(".py").replace("/", "."), words[1:]
    if name in CHECKS:
        CHECKS[name](words)
    elif name != "pytest":  # `check_command` has checked its files
        assert name.startswith("tests."), f"{name}: add a check"
        main = importlib.import_module(name).main
        if "argparse" in (ROOT / f"{name.replace('.', '/')}.py").read_text():
            parse_only(main, words)
        else:
            assert not words
    if "--" in words:  # the rest are flags of train.py
        check_train(words[words.index("--") + 1 :])


class Parsed(BaseException):
    """Raised when the arguments are valid."""


def parse_only(main: Callable[..., object], words: Sequence[str]) -> None:
    """Run a program until it has parsed its arguments."""
    read = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: object) -> None:
        read(parser, *given)  # type: ignore[call-overload]
        raise Parsed

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", ["program", *words])
        main()
        raise AssertionError("the program ran")


def parser_of(main: Callable[..., object]) -> Callable[[Sequence[str]], None]:
    return lambda words: parse_only(main, words)


def check_sbatch(words: Sequence[str]) -> None:
    (job,) = (word for word in words if word.endswith(".sbatch"))
    at = words.index(job)
    assert all(word.startswith("--") for word in words[:at])
    JOBS[Path(job).stem](words[at + 1 :])


def check_one_word(words: Sequence[str]) -> None:
    assert len(words) == 1


def check_pip(words: Sequence[str]) -> None:
    assert words[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = re.findall(r"\[(.*?)\]", " ".join(words))
    assert {name for names in asked for name in names.split(",")} <= set(extras)


def check_reid(words: Sequence[str]) -> None:
    name, *words = words
    assert name in reid_program.PROGRAMS, name
    _, words = take_processes(words)
    CHECKS[name if name in CHECKS else {"sweep": "launch.sweep"}.get(name, f"reid.{name}")](words)
    if "--" in words:  # the rest are flags of train.py
        check_train(words[words.index("--") + 1 :])


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": check_train,
    "evaluate": check_evaluate,
    "shards": parser_of(shards_main),
    "reid.search": parser_of(search.main),
    "reid.export": parser_of(export.main),
    "reid.model": parser_of(__main__.main),
    "launch.sweep": parser_of(sweep_program.main),
}
PROGRAMS = {
    "make": check_make,
    "accelerate": check_launch,
    "python": check_python,
    "reid": check_reid,
    "sbatch": check_sbatch,
    "pip": check_pip,
}
JOBS = {
    "train": check_train,
    "evaluate": check_evaluate,
    "shards": lambda words: CHECKS["shards"](["build", *words]),
    "sweep": check_one_word,
}


@pytest.fixture(scope="module")
def at_root() -> Iterator[None]:
    """Run in the root of the repository, and build each parser once: it takes a quarter of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(config, "make_parser", functools.cache(config.make_parser))
        yield


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize(("page", "command"), documented())
def test_documented_commands_parse(page: str, command: str) -> None:
    """tests/search/test_search.py also runs the commands of docs/search.md."""
    check_command(command)


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize(
    "command",
    [
        "accelerate launch train.py --config configs/market1501.yaml --los.w1=1",
        "accelerate launch --config_file launch/gpus.yaml train.py --config configs/market1501.yaml",
        "reid evaluate --compare runs/a",
        "reid shards biuld folder --root x --out y",
        "reid search query people.index",
        "reid trian --config configs/market1501.yaml",
        "reid sweep configs/sweeps/w1.yaml",
        "reid sweep configs/sweeps/w1_margin.yaml -- --loss.w3=1",
        "python -m tests.bench.losses --large",
        "sbatch slurm/trian.sbatch --name x",
        "make tset",
        "make reproduce DTAA=x",
        "make reproduce DATA=x FLAGS=--sed=1",
        "pip install -e .[all]",
        "wandb sweep configs/sweeps/none.yaml",
        "curl example.org",
    ],
)
def test_a_wrong_command_is_found(command: str) -> None:
    with pytest.raises((AssertionError, SystemExit, ValueError)):
        check_command(command)


def test_unchecked_commands_are_in_use() -> None:
    commands = [command for _, command in documented()]
    assert [prefix for prefix in UNCHECKED if not any(prefix in command for command in commands)] == []


# Tutorial

TUTORIAL = ROOT / "docs" / "tutorial.md"
SHORTER = {  # flags after those of the tutorial: footage of seconds, two steps, small images
    "synth-footage": ["--frames=40", "--width=480", "--height=80"],
    "evaluate": ["--wandb=off"],
    "train": ["--optim.epochs=1", "--batch.steps_per_epoch=2", "--data.height=32", "--data.width=16"],
}


def test_the_tutorial_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command of docs/tutorial.md in order, as written but for the folder of its output and SHORTER."""
    for command in (command for text in blocks(TUTORIAL, "") for command in split_commands(text)):
        if " photos " in command and not (tmp_path / "photos").exists():
            unpack_people(tmp_path / "data" / "tutorial" / "shards", tmp_path / "photos")
        words = [re.sub(r"(^|=)(data/|runs/|photos)", rf"\1{tmp_path}/\2", word) for word in shlex.split(command)]
        run_of_tutorial(words, tmp_path)
    for run, dataset, queries in (("tutorial", "tutorial", 10), ("mine", "folder", 5)):
        evaluation = tmp_path / "runs" / run / "eval" / dataset
        metrics = json.loads((evaluation / "metrics.json").read_text())["image"]
        assert metrics["num_valid_queries"] >= queries and 0 < metrics["mAP"] <= 1
        assert (evaluation / "report.html").is_file()
    assert (tmp_path / "data" / "tutorial" / "result.html").read_text().count("data:image") >= 9
    assert "camera 2" in capsys.readouterr().out


def run_of_tutorial(words: Sequence[str], folder: Path) -> None:
    program, *words = (words[0], *words[1:], *next((more for name, more in SHORTER.items() if name in words), ()))
    if program != ".venv/bin/reid":
        subprocess.run([program, *words], check=True, timeout=60)
    elif words[0] in ("shards", "search"):
        assert {"shards": shards_main, "search": search.main}[words[0]](words[1:]) in (0, None)
    else:
        if words[0] == "train":
            words += [f"--runs={folder / 'runs'}"]
            words += [f"--data.root={folder / 'data/tutorial/shards'}"] if "--name=mine" not in words else []
        status, said = run_program("reid", *words, prepare=without_pictures)
        assert status == 0, said


def unpack_people(shards: Path, photos: Path) -> None:
    """Write the images of train as `photos/<person>/<number>.jpg`."""
    for shard in shards.glob("train-*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                key, _, *suffix = member.name.split(".")
                if suffix:
                    tar.extract(member, photos / key, filter="data")


# Pages that are made from the code


@pytest.mark.parametrize(("page", "make"), [("api.md", pages.make_api), ("knobs.md", pages.make_knobs)])
def test_a_page_that_is_made_from_the_code_is_current(page: str, make: Callable[[], str]) -> None:
    assert (ROOT / "docs" / page).read_text() == make(), f"docs/{page} is old: run `make docs` and commit it"


def test_knobs_lists_every_knob() -> None:
    listed = re.findall(r"^\| `([^`]+)`", (ROOT / "docs" / "knobs.md").read_text(), re.MULTILINE)
    options = [f"--{name}" for name in config.knob_types(EvaluateConfig)]
    assert sorted(listed) == sorted([*config.knob_types(Config), *options])


# Code


def test_python_blocks_compile() -> None:
    for page in PAGES:
        for text in blocks(page, "python"):
            compile(text, page.name, "exec")


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells of docs/quickstart.ipynb in order, read as JSON, without Jupyter; with one epoch of training."""
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    leave_out_pictures(monkeypatch)
    document = json.loads(NOTEBOOK.read_text())
    names: dict[str, Any] = {}
    for cell in document["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec(
                "".join(cell["source"]).replace("epochs=4", "epochs=1").replace("milestones=[3]", "milestones=[]"),
                names,
            )
    assert names["found"].metrics["pedestrians"]["image"]["num_valid_queries"] > 10
    assert names["trained"].checkpoint.parent.parent == tmp_path / "runs" / "quickstart"


def test_the_snippets_of_other_trainers_run(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of docs/training.md, with stand-ins for the classes of Lightning and transformers."""
    module = type("LightningModule", (torch.nn.Module,), {"device": "cpu"})
    trainer = type("Trainer", (), {"args": types.SimpleNamespace(device=torch.device("cpu"))})
    monkeypatch.setitem(sys.modules, "lightning", types.SimpleNamespace(LightningModule=module))
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(Trainer=trainer))
    names: dict[str, Any] = {}
    for text in blocks(ROOT / "docs" / "training.md", "python"):
        if "class " in text:
            exec(text, names)
    encoder = torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten(), torch.nn.Linear(96, 8))
    lit = names["LightningReID"](encoder, str(drawn.root))
    lit.training_step(next(iter(lit.train_dataloader())), 0).backward()
    assert encoder[2].weight.grad.abs().sum() > 0 and lit.configure_optimizers().param_groups[0]["params"]
    hugging = names["ReIDTrainer"]()
    hugging.root = str(drawn.root)
    batch = next(iter(hugging.get_train_dataloader()))
    loss, features = hugging.compute_loss(encoder, batch, return_outputs=True, num_items_in_batch=None)
    assert len(features) == len(batch[1]) and torch.equal(loss, hugging.compute_loss(encoder, batch))


def test_the_comparison_of_two_results_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run the code of docs/protocols.md in a folder with two results."""
    monkeypatch.chdir(tmp_path)
    gallery = random_split(60, 3, 8, 2, seed=1)
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        query = random_split(20, 3, 8, 2, seed=2)
        query.embeddings.add_(seed)
        retrieval.save_results(tmp_path / name / "results.npz", {"image": retrieval.evaluate(query, gallery)})
    (code,) = blocks(ROOT / "docs" / "protocols.md", "python")
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["a"], retrieval.Result) and np.isfinite(names["a"].ap).any()
    assert bootstrap.Difference.__name__ in capsys.readouterr().out


# Make


def dry_make(*words: str) -> str:
    """Return the commands that `make` would run, with this interpreter as the environment."""
    made = make("-n", *words)
    assert made.returncode == 0, made.stderr
    return made.stdout


def make(*words: str) -> subprocess.CompletedProcess[str]:
    here = ["-o", ".venv/installed", f"BIN={Path(sys.executable).parent}"]
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", *here, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.usefixtures("at_root")
def test_reproduce_builds_trains_and_evaluates(tmp_path: Path) -> None:
    words = [f"DATA={tmp_path}", "CONFIG=configs/baselines/bot.yaml", "FLAGS=--seed=1 --optim.epochs=2"]
    build, train, evaluate = programs_of("reproduce", *words)
    assert f"--root {tmp_path} " in build
    assert "--name=bot " in train and train.endswith("--seed=1 --optim.epochs=2")
    assert "--run runs/bot " in evaluate and evaluate.endswith("--baselines untrained histogram --rerank")


@pytest.mark.usefixtures("at_root")
def test_make_runs_the_tutorial() -> None:
    """Steps 1 to 5, which need no pictures of the user."""
    environment = Path(sys.executable).parent
    made = [
        command.replace(f"{environment}/", ".venv/bin/")
        for command in split_commands(dry_make("tutorial"))
        if not command.startswith("rm ")
    ]
    written = [command for text in blocks(TUTORIAL, "") for command in split_commands(text) if "photos" not in command]
    assert [command for command in written if "mine" not in command] == made


@pytest.mark.usefixtures("at_root")
def test_the_quickstart_draws_builds_trains_and_evaluates() -> None:
    assert len(programs_of("quickstart")) == 4


def programs_of(*words: str) -> list[str]:
    """Check and return the commands of a target that start one of our programs."""
    commands = [command for command in split_commands(dry_make(*words)) if re.search(r"/reid | launch ", command)]
    for command in commands:
        check_command(command)
    return commands


def test_reproduce_asks_for_the_dataset(tmp_path: Path) -> None:
    for words, message in (
        ([], "DATA is missing; make reproduce DATA=<folder of Market-1501>"),
        ([f"DATA={tmp_path}"], f"{tmp_path} holds no folder bounding_box_train"),
    ):
        made = make("reproduce", *words)
        assert made.returncode == 2 and made.stdout == ""
        assert made.stderr.startswith(f"error: {message}"), made.stderr


def test_help_names_every_target() -> None:
    named = set(re.findall(r"^make ([\w-]+)", make("help").stdout, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None and named == set(phony[1].split()) - {"help", "market-folder"}
