"""The shape of the project, read from its source: which package may import which, and which libraries."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from reid.evaluation.about import ABOUT, describe, write_json
from reid.evaluation.dataset_report import PER_QUERY
from reid.metrics import Features, retrieval
from reid.search import __main__ as search
from tests.support.drawn import Drawn
from tests.support.runs import make_run

ROOT = Path(__file__).parents[1]
REID = sorted((ROOT / "reid").rglob("*.py"))
SHARDS = sorted((ROOT / "shards").rglob("*.py"))
DOORS = [ROOT / "train.py", ROOT / "evaluate.py"]
# From the bottom up; a part may import from lower layers only.
LAYERS = (
    ("files", "precision"),
    ("config",),
    ("data", "distributed", "metrics"),
    ("losses", "program", "reports"),
    ("launcher", "model"),
    ("runs",),
    ("embedder", "evaluation", "sweeps"),
    ("search", "training"),
    ("api", "export"),
    ("__main__",),
)
HEAVY = (
    "torch",
    "torch._dynamo",
    "torchvision",
    "accelerate",
    "sklearn",
    "matplotlib",
    "jinja2",
    "wandb",
    "webdataset",
)
RUNS_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module imported anywhere in the file, also inside functions: reid.data.plan, torch.nn, ..."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & MODULES
            if names - MODULES:
                found.add(node.module)
    return frozenset(found)


MODULES = {module_name(path) for path in (*REID, *SHARDS)}


def top(names: Set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def importers(package: str) -> set[str]:
    return {module_name(path) for path in (*REID, *SHARDS, *DOORS) if package in top(imports(path))}


def test_the_files_are_found():
    assert {"reid.data.plan", "reid.training.train", "shards.build", "shards.__main__"} <= MODULES
    assert imports(ROOT / "reid" / "data" / "train_loader.py") >= {
        "torch",
        "numpy",
        "reid.data.plan",
        "reid.data.joined",
    }


@pytest.mark.parametrize("files", [REID, SHARDS], ids=["reid", "shards"])
def test_no_cycle(files):
    graph = {module_name(path): imports(path) & MODULES for path in files}
    for cycle in cycles(graph):
        raise AssertionError(" -> ".join(cycle))


def cycles(graph: Mapping[str, Set[str]]) -> Iterator[list[str]]:
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> Iterator[list[str]]:
        if name in path:
            yield [*path[path.index(name) :], name]
        elif name not in done:
            for other in sorted(
                graph.get(name, set()) - {name.split(".")[0]}
            ):  # the package itself holds a version only
                yield from visit(other, [*path, name])
            done.add(name)

    for name in graph:
        yield from visit(name, [])


def test_the_search_for_cycles_finds_one():
    assert list(cycles({"r.a": {"r.b"}, "r.b": {"r.c"}, "r.c": {"r.a"}})) == [["r.a", "r.b", "r.c", "r.a"]]
    assert list(cycles({"r.a": {"r.b", "r.c"}, "r.b": {"r.c"}, "r.c": set()})) == []


def test_reid_knows_nothing_of_shards():
    assert [path.name for path in REID if "shards" in top(imports(path))] == []


def test_shards_needs_only_parts_of_reid_without_torch():
    for path in SHARDS:
        used = {name for name in imports(path) if name.startswith("reid.")}
        data = {f"reid.data.{name}" for name in ("image_file", "joined", "manifest", "plan", "shard_reader", "table")}
        allowed = {"reid", "reid.data", "reid.files", "reid.program", "reid.reports", "reid.reports.style"}
        assert used <= data | allowed, path.name


@pytest.mark.parametrize("path", REID, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    """A package imports from its own modules and from packages of lower layers only."""
    floor = {name: number for number, names in enumerate(LAYERS) for name in names}
    own = part_of(module_name(path))
    assert "reid" not in imports(path), "reid/__init__.py imports the API: it is above most packages"
    for name in imports(path):
        if name.startswith("reid.") and part_of(name) != own and own:
            assert floor[part_of(name)] < floor[own], f"{module_name(path)} imports {name}"


def part_of(module: str) -> str:
    """reid.data.plan -> data; the package itself -> ""."""
    return (module + ".").split(".")[1]


def test_every_part_has_its_layer():
    parts = {part_of(module_name(path)) for path in REID} - {""}
    assert sorted(parts) == sorted(name for names in LAYERS for name in names)


def test_accelerate_stays_in_training_and_the_process_group():
    assert {part_of(name) for name in importers("accelerate")} <= {"training", "evaluation", "distributed"}


def test_wandb_stays_in_tracking():
    assert importers("wandb") == {"reid.runs.tracking"}


def test_webdataset_stays_where_shards_are_written():
    assert importers("webdataset") <= {"shards.pack"}


@pytest.mark.parametrize("path", [*REID, *SHARDS], ids=module_name)
def test_nothing_that_is_read_can_run_code(path):
    assert not top(imports(path)) & RUNS_CODE
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom) and "joblib" in ast.unparse(node):
            assert ast.unparse(node) == "from joblib import cpu_count", f"line {node.lineno}: joblib reads pickles"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in {"eval", "exec", "os.system"}, f"line {node.lineno}"
        knobs = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called.endswith("Image.open"):
            assert module_name(path) == "reid.data.image_file", f"line {node.lineno}: use open_image or open_rgb"
        if called == "torch.load":
            assert knobs.get("weights_only") == "True", f"line {node.lineno}"
        if called in {"np.load", "numpy.load"}:
            assert knobs.get("allow_pickle", "False") == "False", f"line {node.lineno}"
        if called.startswith("yaml.") and "load" in called:
            assert called == "yaml.safe_load", f"line {node.lineno}"
        assert knobs.get("shell", "False") == "False", f"line {node.lineno}"


@pytest.mark.timeout(120)
def test_importing_does_nothing_visible(tmp_path):
    """All modules in one fresh process, in an empty folder: no output, no file, no thread, no process group."""
    code = "\n".join(
        [
            f"import sys, threading; sys.path.insert(0, {str(ROOT)!r})",
            *(f"import {name}" for name in sorted(MODULES)),
            "import torch.distributed",
            "assert threading.active_count() == 1, threading.enumerate()",
            "assert not torch.distributed.is_initialized()",
            "assert not torch.cuda.is_initialized()",
            "assert 'wandb' not in sys.modules or not sys.modules['wandb'].run",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    # The first import of Matplotlib on a machine may say that it builds its font cache.
    said = [line for line in done.stderr.splitlines() if "font cache" not in line]
    assert (done.returncode, done.stdout, said) == (0, "", [])
    assert list(tmp_path.iterdir()) == []


RUN_DOORS = """
import contextlib, io, json, runpy, shlex, sys
commands, heavy = json.loads(sys.argv[1])
sys.path.insert(0, ".")
said = []
for command in commands:
    sys.argv = shlex.split(command)
    output, status = io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            (runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module)(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            status = ended.code or 0
    said.append([command, status, sorted(sys.modules.keys() & set(heavy)), output.getvalue()[-500:]])
print(json.dumps(said))
"""


def check_doors(commands: Sequence[tuple[str, int, Set[str]]]) -> None:
    """Run commands one after the other in one process.

    Args:
        commands: what a user types after `python` or `python -m`, the exit status, and the modules of HEAVY that the
            process has imported by then.
    """
    given = json.dumps([[command for command, _, _ in commands], HEAVY])
    done = subprocess.run(
        [sys.executable, "-c", RUN_DOORS, given], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    for (command, status, allowed), (_, ended, imported, output) in zip(commands, json.loads(done.stdout), strict=True):
        assert (ended, imported) == (status, sorted(allowed)), f"{command}: {output}"


@pytest.mark.timeout(120)
def test_arguments_and_shards_need_no_torch(drawn: Drawn, tmp_path: Path) -> None:
    asked = ["train.py", "evaluate.py", "reid.search", "shards", "launch/sweep.py"]
    root, shards = shlex.quote(str(drawn.raw)), shlex.quote(str(tmp_path / "shards"))
    check_doors(
        [
            *((f"{door} --help", 0, set()) for door in asked),
            *((f"{door} --print_config", 0, set()) for door in ("train.py", "evaluate.py")),
            *((f"{door} --los.w1=1", 2, set()) for door in asked),
            ("reid.search query index", 2, set()),
            (f"shards build market1501 --root {root} --out {shards} --shards 1", 0, set()),
            (f"shards verify --decode {shards}", 0, set()),
            (f"shards stage {shards} {shards}-staged", 0, set()),
            ("shards verify nowhere", 2, set()),
            (f"shards stats {shards}", 0, {"matplotlib"}),
        ]
    )


@pytest.mark.timeout(120)
def test_a_program_imports_what_it_uses(drawn: Drawn, tmp_path: Path) -> None:
    """torchvision builds encoders and decodes images; nothing else here needs more than torch."""
    rng = np.random.default_rng(0)
    split = Features(rng.normal(size=(20, 4)), np.arange(20) % 5, np.arange(20) % 2)
    reports = [tmp_path / "a", tmp_path / "b"]
    for report in reports:
        report.mkdir()
        retrieval.save_results(report / PER_QUERY, {"image": retrieval.evaluate(split, split)})
        write_json(report / ABOUT, asdict(describe("d", "somewhere", "", split, split)))
    run, index = make_run(tmp_path / "runs" / "tiny", drawn), tmp_path / "index"
    asked = ["--images", str(drawn.root), "--device", "cpu"]
    search.main(["index", "--checkpoint", str(run), "--out", str(index), *asked])
    photo = next(drawn.raw.glob("query/*.jpg"))
    torch, decoding = {"torch"}, {"torch", "torch._dynamo", "torchvision"}
    check_doors(
        [
            ("reid.export --help", 0, set()),
            ("reid.model --help", 0, set()),
            ("reid.model fetch nothing", 2, torch),
            (shlex.join(["reid.search", "info", str(index)]), 0, torch),
            (shlex.join(["reid.search", "query", "nowhere", str(photo)]), 2, torch),
            (
                shlex.join(["reid.search", "index", "--checkpoint", "nowhere", "--out", "nowhere", *asked]),
                2,
                torch,
            ),
            (shlex.join(["evaluate.py", "--compare", *map(str, reports)]), 0, torch),
            ("evaluate.py --run=nowhere", 2, torch),
            ("train.py --data.root=nowhere", 2, torch),
            (shlex.join(["reid.search", "query", str(index), str(photo), "--device", "cpu"]), 0, decoding),
        ]
    )


def test_no_test_imports_another() -> None:
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    assert tests
    for path in tests:
        named = re.findall(r"^ *(?:from|import) (tests[\w.]*)", path.read_text(), re.MULTILINE)
        assert [name for name in named if not name.startswith("tests.support")] == [], path
