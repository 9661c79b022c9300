"""Images and cameras per identity: a table and a plot, from the manifest only."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reid.data.manifest import Manifest, Split
from shards.records import UNKNOWN_CAMERA
from shards.summary import align, has_identity

COLOUR, MEDIAN_COLOUR = "#35618f", "#c2571a"
MAX_BARS = 40  # with more different values, a bar stands for a range
UNITS = ("images per identity", "cameras per identity")


def count_per_identity(split: Split, distractor_pid: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N,) and known cameras (N,) of each identity without junk and distractors; int64."""
    rows = np.flatnonzero(has_identity(split, distractor_pid))
    cameras = [len(set(split.cameras[row]) - {UNKNOWN_CAMERA}) for row in rows]
    return split.images[rows], np.array(cameras, dtype=np.int64)


def format_stats(manifest: Manifest) -> str:
    """Return a table with one line per split: images and cameras per identity."""
    rows = [["split", "identities", "least images", "median", "mean", "most", "mean cameras", "one camera"]]
    for name, split in manifest.splits.items():
        images, cameras = count_per_identity(split, manifest.distractor_pid)
        if not len(images):
            rows.append([name, "0", *["-"] * 6])
            continue
        known = cameras[cameras > 0]
        cells = [len(images), images.min(), f"{np.median(images):g}", f"{images.mean():.1f}", images.max()]
        cells += [f"{known.mean():.1f}", (known == 1).sum()] if len(known) else ["unknown", "-"]
        rows.append([name, *map(str, cells)])
    return align(rows)


def draw_stats(manifest: Manifest, path: Path) -> Path:
    """Save histograms of images and cameras per identity, one row for each split with identities.

    Raises ValueError if no split has identities, the suffix is unknown, or the file cannot be written.
    """
    counted = {name: count_per_identity(split, manifest.distractor_pid) for name, split in manifest.splits.items()}
    counted = {name: counts for name, counts in counted.items() if len(counts[0])}
    if not counted:
        raise ValueError(f"{manifest.dataset}: no identity in these shards, nothing to draw")
    figure = Figure(figsize=(10, 0.6 + 2.4 * len(counted)), layout="constrained")
    figure.suptitle(f"{manifest.dataset}: images and cameras per identity")
    rows = figure.subplots(len(counted), 2, squeeze=False, width_ratios=(2, 1))
    for axes, (name, counts) in zip(rows, counted.items(), strict=True):
        for axis, values, unit in zip(axes, counts, UNITS, strict=True):
            _draw_histogram(axis, values, f"{name}: {unit.split()[0]}")
    for axis, unit in zip(rows[-1], UNITS, strict=True):
        axis.set_xlabel(unit)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except (ValueError, OSError) as error:
        raise ValueError(f"--out {path}: the picture cannot be written ({error}); name a .png, .pdf or .svg") from error
    return path


def _draw_histogram(axis: Axes, values: np.ndarray, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    if not values.any():
        axis.text(0.5, 0.5, "camera ids unknown", ha="center", va="center", transform=axis.transAxes, color="grey")
        axis.set(xticks=[], yticks=[])
        return
    low, high = int(values.min()), int(values.max())
    width = -(-(high - low + 1) // MAX_BARS)
    edges = np.arange(low, high + width + 1, width) - 0.5
    axis.hist(values, bins=edges.tolist(), color=COLOUR, rwidth=0.9)
    median = float(np.median(values))
    axis.axvline(median, color=MEDIAN_COLOUR, linestyle="--", linewidth=1.2)
    axis.set_title(f"median {median:g}, mean {values.mean():.1f}", loc="right", fontsize=9, color=MEDIAN_COLOUR)
    axis.set_ylabel("identities" if width == 1 else f"identities, {width} counts a bar")
    axis.set_xlim(min(0, edges[0]), high + width)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
