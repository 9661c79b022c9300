"""The configurations that come with the product: `--config reid:quickstart` is the file configs/quickstart.yaml."""

from __future__ import annotations

import difflib
from pathlib import Path

PREFIX = "reid:"
_BESIDE = Path(__file__).parents[2]  # the root of a source tree
_INSIDE = Path(__file__).parents[1] / "shipped"  # of an installed wheel
SHIPPED = _INSIDE if _INSIDE.is_dir() else _BESIDE
CONFIGS = SHIPPED / "configs"


def find_config(name: str) -> str:
    """Return the file that `name` means: reid:quickstart, reid:ablations/paper, or the path of any file.

    Raises:
        ValueError: no configuration of that name comes with the product, or its name was given without the prefix.
    """
    if not name.startswith(PREFIX):
        plain = name.removeprefix("configs/").removesuffix(".yaml")
        if plain in list_configs() and not Path(name).exists():
            raise ValueError(f"--config {name}: no such file here; the one of the product is --config {PREFIX}{plain}")
        return name
    wanted = name.removeprefix(PREFIX).removesuffix(".yaml")
    if wanted not in (known := list_configs()):
        near = difflib.get_close_matches(wanted, known, n=1)
        meant = f"Did you mean {PREFIX}{near[0]}? " if near else ""
        raise ValueError(f"--config {name}: no such configuration. {meant}`reid configs` lists all.")
    return str(CONFIGS / f"{wanted}.yaml")


def list_configs() -> list[str]:
    """Return the names of all configurations, without sweeps."""
    paths = (path.relative_to(CONFIGS).with_suffix("") for path in sorted(CONFIGS.rglob("*.yaml")))
    return [path.as_posix() for path in paths if path.parts[0] != "sweeps"]


def main() -> int:
    """Print the names, each with the first line of its file, and where the files lie."""
    for name in list_configs():
        first = (CONFIGS / f"{name}.yaml").read_text().partition("\n")[0]
        print(f"{PREFIX + name:<26}{first.lstrip('# ') if first.startswith('#') else ''}")
    print(f"files: {CONFIGS}; job files of Slurm: {SHIPPED / 'slurm'}; of accelerate: {SHIPPED / 'launch'}")
    return 0
