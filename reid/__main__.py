"""The program `reid`: one name for all programs of the project.

    reid shards build ...       reid train ...       reid evaluate ...
    reid search ...             reid export ...      reid sweep ...       reid model ...

`reid train --processes 4` starts four processes of this machine, one per GPU if it has GPUs. On several machines use
`accelerate launch train.py` (docs/clusters.md).
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from reid.launcher import launch, take_processes
from reid.program import call

PROGRAMS = {
    "train": ("reid.training.__main__", "train one run; --processes N starts N processes"),
    "evaluate": ("reid.evaluation.__main__", "evaluate a run or features, or compare reports; also --processes N"),
    "shards": ("shards.__main__", "build, split, verify, show and draw datasets"),
    "search": ("reid.search.__main__", "index images, and find who looks most like a photo"),
    "export": ("reid.export.__main__", "write a model as ONNX, torch.export or safetensors, or on Hugging Face's hub"),
    "sweep": ("reid.sweeps.__main__", "train the runs of a sweep file without W&B's server"),
    "model": ("reid.model.__main__", "list encoders, fetch their weights, inspect files of weights"),
    "configs": ("reid.config.shipped", "list the configurations that --config reid:NAME reads"),
}
LAUNCHED = ("train", "evaluate")  # programs that run in several processes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program that the first word names, on the other words. Return its exit status."""
    name, *flags = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    return call(lambda: _run(name, flags))


def _run(name: str, flags: Sequence[str]) -> int:
    if name in ("-h", "--help"):
        print(str(__doc__).strip(), "", *(f"  {name:<10}{text}" for name, (_, text) in PROGRAMS.items()), sep="\n")
        return 0
    if name == "--version":
        print(importlib.metadata.version("mctl-reid"))
        return 0
    if name not in PROGRAMS:
        near = "".join(f" Did you mean {word}?" for word in difflib.get_close_matches(name, PROGRAMS, n=1))
        raise ValueError(f"reid {name}: no such command.{near} Choose from {', '.join(PROGRAMS)}")
    module = PROGRAMS[name][0]
    if name in LAUNCHED:
        processes, flags = take_processes(flags)
        if processes > 1:
            return launch(module, flags, processes)
    sys.argv = [f"reid {name}", *flags]  # the name of the program in its --help
    status: int | None = importlib.import_module(module).main()
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
