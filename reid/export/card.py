"""The model card of a published model: README.md, from about.json and the reports of its run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reid.embedder import Embedder
from reid.evaluation.about import ABOUT, About, load_about
from reid.evaluation.dataset_report import METRICS, THRESHOLDS
from reid.reports.tables import format_interval, percent
from reid.runs.folder import RunFolder
from reid.runs.models import find_run

FRONT = """\
---
library_name: mctl-reid
pipeline_tag: image-feature-extraction
tags:
- person-re-identification
- re-id
- image-retrieval
---
"""
NO_NAME = "ORG/NAME"  # until the folder is uploaded
HEADS = ("dataset", "protocol", "mAP", "95%", "R1", "mINP", "queries", "gallery")


def write_card(embedder: Embedder, about: dict[str, Any], repository: str) -> str:
    """Return the model card, in Markdown. What only its author knows is marked **TO DO**.

    Args:
        embedder: the model, of a run.
        about: its about.json.
        repository: its name on the hub; "" = not known yet.
    """
    name = repository or NO_NAME
    run = find_run("", str(embedder.source))[0]
    height, width = embedder.size
    facts = {
        "encoder": f"{about['model']['encoder']}, {height} x {width} pixels (height x width)",
        "feature": f"{embedder.dim} numbers, {about['feature']}",
        "fingerprint": about["fingerprint"],
        "training data, fingerprints of its shards": ", ".join(about["data"]) or "unknown",
        "made by": about["made_by"],
    }
    lines = [f"# {name}", "", "A model for re-identification: it maps a crop of a person to a feature."]
    lines += [*_write_section("Model", [f"- {key}: {value}" for key, value in facts.items()])]
    use = ["```python", "from reid import Embedder", f'features = Embedder.load("hf:{name}").embed(["a.jpg", "b.jpg"])']
    use += ["```", "Compare features by the cosine. `Embedder` is of the program that made this model."]
    lines += [*_write_section("Use", use)]
    lines += [*_write_section("Metrics", list(_list_metrics(run, embedder.source)))]
    lines += [*_write_section("Limits", LIMITS)]
    lines += [*_write_section("To complete", TO_DO)]
    return FRONT + "\n".join(lines) + "\n"


LIMITS = [
    "- The first result of a search is the nearest image of those searched, also if the person is not among them. It",
    "  is no evidence of an identity, and no threshold makes it one. Do not use the model to identify people, or in a",
    "  process that affects people without a human decision that does not rely on it.",
    "- Accuracy on other cameras, places and seasons is lower than the metrics above: measure it on your own data.",
    "- A feature of a person is personal data. Protect it like the image.",
]
TO_DO = [
    "- **TO DO** license of the weights. Weights that were trained on a research dataset inherit its terms.",
    "- **TO DO** name, source and terms of the training data; whether the people in it have given consent.",
    "- **TO DO** metrics on data of another site, and per group and pair of cameras, where you have them.",
    "- **TO DO** contact.",
]


def _write_section(title: str, lines: list[str]) -> Iterator[str]:
    yield from ("", f"## {title}", *lines)


def _list_metrics(run: RunFolder, source: Path) -> Iterator[str]:
    """Yield a table of the reports on a checkpoint, and its thresholds; without reports, how to make them."""
    rows, thresholds = [], []
    for folder, about in _find_reports(run, source):
        name = about.dataset + (", flip test" if about.flip else "")
        for protocol, found in json.loads((folder / METRICS).read_text()).items():
            mean, rank1, inp = (percent(share) for share in (found["mAP"], found["cmc"][0], found["mINP"]))
            sizes = f"{found['num_valid_queries']:,}", f"{found['gallery_size']:,}"
            rows.append((name, protocol, mean, format_interval(found["mAP_interval"]), rank1, inp, *sizes))
        if (folder / THRESHOLDS).is_file():
            thresholds += [f"- {name}: {line}" for line in _list_thresholds(folder / THRESHOLDS)]
    if not rows:
        yield f"**TO DO** there is no report on this checkpoint; run `reid evaluate --run {run.path}` and export again."
        return
    yield from (_write_row(row) for row in (HEADS, ["---"] * len(HEADS), *rows))
    yield from (
        "",
        "In percent; 95%: bootstrap interval of mAP over the queries. `image` compares with published tables;",
    )
    yield "under `centroid` and `centroid_all` a query has one relevant entry, so never compare them with image mAP."
    if thresholds:
        yield from ("", "Thresholds on the cosine:", *thresholds)


def _find_reports(run: RunFolder, source: Path) -> Iterator[tuple[Path, About]]:
    """Yield the folders of a run's reports on a checkpoint. Raises ValueError if one is damaged."""
    for path in sorted(run.reports.glob(f"*/{ABOUT}")):
        about = load_about(path.parent)
        if Path(about.source).name == source.name:
            yield path.parent, about


def _list_thresholds(path: Path) -> Iterator[str]:
    document = json.loads(path.read_text())
    for rate, point in document.get("verification", {}).get("thresholds", {}).items():
        yield f"{point['threshold']:.4f} for a false positive rate of {rate} over pairs of images"
    for rate, point in document.get("open_set", {}).get("thresholds", {}).items():
        yield f"{point['threshold']:.4f} for a false alarm rate of {rate} over people who are not in the gallery"


def _write_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
