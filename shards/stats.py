"""Images and cameras per identity: a table from the manifest only, and a picture with some of the images."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reid.data.image_file import open_rgb
from reid.data.manifest import Manifest, Split
from reid.data.shard_reader import Dropped, read_sound_identities
from reid.reports.style import LIGHT, style_axes
from shards.records import UNKNOWN_CAMERA
from shards.summary import align, has_identity

MAX_BARS = 40  # with more different values, a bar stands for a range
SAMPLE = 12  # identities of which an image is shown
SAMPLE_PX = 160  # its longest side
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


def draw_stats(manifest: Manifest, path: Path, root: Path) -> Path:
    """Save histograms of images and cameras per identity, and sample images, for each split with identities.

    Raises ValueError if no split has identities, the suffix is unknown, or the file cannot be written.
    """
    counted = {name: count_per_identity(split, manifest.distractor_pid) for name, split in manifest.splits.items()}
    counted = {name: counts for name, counts in counted.items() if len(counts[0])}
    if not counted:
        raise ValueError(f"{manifest.dataset}: no identity in these shards, nothing to draw")
    figure = Figure(figsize=(10, 4.3 * len(counted)), facecolor=LIGHT.paper, layout="constrained")
    title = {"x": 0.01, "ha": "left", "fontsize": 14, "fontweight": "bold", "color": LIGHT.ink, "parse_math": False}
    figure.suptitle(manifest.dataset, **title)
    grid = figure.add_gridspec(2 * len(counted), 3, height_ratios=[2, 1] * len(counted))
    for row, (name, counts) in enumerate(counted.items()):
        places = grid[2 * row, :2], grid[2 * row, 2]
        for place, values, unit in zip(places, counts, UNITS, strict=True):
            _draw_histogram(figure.add_subplot(place), values, f"{name}: {unit.split()[0]}", unit)
        _draw_sample(figure.add_subplot(grid[2 * row + 1, :]), root, manifest.splits[name], manifest.distractor_pid)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except (ValueError, OSError) as error:
        raise ValueError(f"--out {path}: the picture cannot be written ({error}); name a .png, .pdf or .svg") from error
    return path


def _draw_histogram(axis: Axes, values: np.ndarray, title: str, unit: str) -> None:
    style_axes(axis, LIGHT, title, (unit, ""))
    if not values.any():
        axis.text(0.5, 0.5, "camera ids unknown", ha="center", va="center", transform=axis.transAxes, color=LIGHT.soft)
        axis.set(xticks=[], yticks=[])
        return
    low, high = int(values.min()), int(values.max())
    width = -(-(high - low + 1) // MAX_BARS)
    edges = np.arange(low, high + width + 1, width) - 0.5
    axis.hist(values, bins=edges.tolist(), color=LIGHT.lines[0], edgecolor=LIGHT.paper, linewidth=0.8)
    median = float(np.median(values))
    axis.axvline(median, color=LIGHT.ink, linestyle="--", linewidth=1.2)
    axis.set_xlabel(f"{unit}\nmedian {median:g}, mean {values.mean():.1f}", color=LIGHT.ink)
    axis.set_ylabel("identities" if width == 1 else f"identities, {width} counts a bar", color=LIGHT.ink)
    axis.set_xlim(min(0, edges[0]), high + width)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))


def _draw_sample(axis: Axes, root: Path, split: Split, distractor_pid: int | None) -> None:
    """Draw the images of `read_sample` in a row, or why there are none."""
    axis.set_axis_off()
    images, reason = read_sample(root, split, distractor_pid)
    if reason:
        axis.text(0, 0.5, f"no sample images: {reason}", color=LIGHT.soft, fontsize=9, wrap=True, parse_math=False)
        return
    left = 0.0
    for image in images:
        width = image.shape[1] / image.shape[0]
        axis.imshow(image, extent=(left, left + width, 0, 1), interpolation="lanczos")
        left += width + 0.06
    axis.set(xlim=(0, max(left, SAMPLE / 2)), ylim=(0, 1), anchor="W")


def read_sample(root: Path, split: Split, distractor_pid: int | None) -> tuple[list[np.ndarray], str]:
    """Return the first images (H, W, 3) uint8 of SAMPLE identities, evenly spaced in the first shards that hold enough.

    Only these shards are read. The text says why there are no images, or is "".
    """
    rows = np.flatnonzero(has_identity(split, distractor_pid))
    rows = rows[split.shard[rows] <= split.shard[rows[:SAMPLE][-1]]]
    wanted = {int(rows[i]) for i in np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int)}
    images = []
    shards = np.unique(split.shard[rows]).tolist()
    for found in read_sound_identities(root, split, shards, wanted, lazily=True):
        if isinstance(found, Dropped):
            return [], found.reason
        try:
            image = open_rgb(found.image(0))
        except ValueError as error:
            return [], str(error)
        image.thumbnail((SAMPLE_PX, SAMPLE_PX))
        images.append(np.asarray(image))
    return images, ""
