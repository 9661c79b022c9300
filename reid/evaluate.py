"""The evaluation program: `accelerate launch evaluate.py --run runs/quickstart`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reid import program
from reid.about import describe
from reid.compare import compare, format_comparison, write_comparison
from reid.config import Config, EvaluateConfig, check_evaluation, load, parse, to_dict
from reid.data.eval_loader import read_images
from reid.data.manifest import Manifest, load_manifest
from reid.distributed import check_precision, rank, start_accelerator
from reid.domain import Domain, Evaluated, choose_folder, read_about, step_aside, write_domain, write_json
from reid.features import evaluate_over_ranks, extract
from reid.files import check_writable, make_folder
from reid.foreign import Foreign, check_finite, read_features, read_pictures, write_features
from reid.metrics import rerank
from reid.metrics.features import JUNK, Features
from reid.metrics.retrieval import Result
from reid.precision import AUTOCAST_DTYPES
from reid.reports.report import list_pictures
from reid.reports.tables import COST_COLUMNS, RERANKED, Results, format_notes, format_results, list_cost
from reid.runs import checkpoint
from reid.runs.folder import find_run
from reid.runs.models import build_models, model_knobs
from reid.runs.tracking import Tracker
from reid.startup import build_pixels

if TYPE_CHECKING:
    from accelerate import Accelerator

FOREIGN = "features"  # the row's name
MAX_PIXELS = 50_000_000  # of a picture in a rank list; a guard against decompression bombs
RAW = ("mAP", "mAP_trapezoid", "mINP", "gallery_size", "num_valid_queries")  # columns of W&B's table
SHOWN_HEIGHT = 128  # people look at more pixels than a small encoder does


def main(args: Sequence[str] | None = None) -> None:
    """The program. evaluate.py parses before it imports this module, and calls `start`."""
    start(parse(EvaluateConfig, args))


def start(options: EvaluateConfig) -> None:
    """Evaluate, print the table and where the report is; one line and exit status 2 for what the user can fix."""
    program.call(lambda: evaluate(options))


def evaluate(options: EvaluateConfig) -> Path:
    """Evaluate as `options` say and return the report's folder, or of several datasets the folder that holds theirs.

    Raises ValueError on what the user can mend.
    """
    check_evaluation(options)
    if options.rerank and not set(options.protocols) & set(RERANKED):
        raise ValueError(f"--rerank re-ranks {' and '.join(RERANKED)}; add one of them to --protocols")
    if options.compare:
        return compare_reports(options)
    return evaluate_features(options) if options.features else evaluate_run(options)


def compare_reports(options: EvaluateConfig) -> Path:
    if options.out:
        make_folder(Path(options.out))
    compared = compare(options.compare)
    if os.environ.get("RANK", "0") == "0":
        print(format_comparison(compared), flush=True)
        if options.out:
            print(f"\ncomparison: {write_comparison(Path(options.out), compared)}", flush=True)
    return Path(options.out or options.compare[0])


def evaluate_run(options: EvaluateConfig) -> Path:
    """A run's checkpoint on one dataset or several: a report for each, and for several one table of them all."""
    started = time.perf_counter()
    folder, found = find_run(options.run, options.checkpoint)
    config = load(folder / "config.yaml")
    base = Path(options.out or folder / "eval")
    check_writable(base, "--out")
    manifests = load_manifests(options.data or [config.data.root])
    models = build_models(found, model_knobs(config), options.baselines, config.seed)
    trained_on = checkpoint.read_state(found)["describes"].get("data", "")
    # Other ranks wait while rank 0 re-ranks and draws.
    accelerator = start_accelerator("no", options.timeout_s)
    check_precision(accelerator, options.precision)
    make_folder(base)

    tables: dict[Path, dict[str, Any]] = {}
    for root, manifest in manifests.items():
        rows = {
            name: evaluate_model(model.to(accelerator.device), root, manifest, config, options, accelerator)
            for name, model in models.items()
        }
        if accelerator.is_main_process:
            out = choose_folder(base, manifest.dataset, manifest.fingerprint, list(tables))
            facts = {
                "run": str(folder),
                "checkpoint": found.name,
                "data": f"{root} ({manifest.dataset}, fingerprint {manifest.fingerprint[:12]})",
                "encoder": f"{config.model.encoder}, {config.data.height}x{config.data.width} pixels",
                **say_how(options, accelerator, started),
            }
            domain = domain_of_run(found, root, manifest, config, trained_on)
            tables[out] = finish(out, domain, rows, facts, options)
    if accelerator.is_main_process:
        if len(tables) > 1:
            write_domains(base, tables, options.ranks)
        say_notes(tables)
        track(options, {"train": to_dict(config)}, config.name, folder, tables)
    end(accelerator)
    return base if len(manifests) > 1 else next(iter(tables), base)


def load_manifests(roots: Sequence[str]) -> dict[str, Manifest]:
    """ValueError on data without queries and gallery, and on data given twice."""
    manifests: dict[str, Manifest] = {}
    for root in roots:
        manifest = load_manifest(root)
        for split in ("query", "gallery"):
            if not (manifest.split(split).pids != JUNK).any():
                raise ValueError(f"{root}: the {split} split holds no image; there is nothing to evaluate")
        same = [other for other, known in manifests.items() if known.fingerprint == manifest.fingerprint]
        if root in manifests or same:
            raise ValueError(f"--data: {root} holds the same data as {(same or [root])[0]}; give each dataset once")
        manifests[root] = manifest
    return manifests


def evaluate_model(
    model: torch.nn.Module,
    root: str,
    manifest: Manifest,
    config: Config,
    options: EvaluateConfig,
    accelerator: Accelerator,
) -> Evaluated:
    """Features are extracted once, in float32 unless --precision says otherwise, and serve every protocol."""
    pixels = build_pixels(config)
    splits = []
    for split in ("query", "gallery"):
        features = extract(
            model, root, manifest, split, pixels, batch_size=options.batch_size, workers=options.workers,
            device=accelerator.device, dtype=AUTOCAST_DTYPES[options.precision],
        ).features  # fmt: skip
        check_finite(features, f"{root}: {split}", lambda i, split=split: name_image(manifest, split, i))  # type: ignore[misc]
        splits.append(features)
    return rank_protocols(splits[0], splits[1], options)


def rank_protocols(query: Features, gallery: Features, options: EvaluateConfig) -> Evaluated:
    """Every protocol's result. One without a possible match is left out with a warning, unless all are."""
    results: dict[str, Result] = {}
    warnings: list[str] = []
    first_error: ValueError | None = None
    max_rank = max(options.max_rank, *options.ranks)
    for protocol in options.protocols:
        try:
            results |= evaluate_over_ranks(query, gallery, [protocol], max_rank, options.metric)
        except ValueError as error:
            first_error = first_error or error
            warnings.append(f"{protocol} is left out: {error}")
    if first_error and not results:
        raise first_error
    for asked, row in RERANKED.items():
        if not options.rerank or asked not in options.protocols or rank():  # one rank: it needs all queries at once
            continue
        try:
            results[row] = rerank.evaluate_reranked(
                query, gallery, asked, options.metric, options.rerank_k1, options.rerank_k2, options.rerank_lambda,
                max_rank,
            )  # fmt: skip
        except ValueError as error:
            warnings.append(f"{row} is left out: {error}")
    return Evaluated(query, gallery, results, warnings)


def name_image(manifest: Manifest, split: str, row: int) -> str:
    """Where the image of a row of the features (junk left out) lies, for a person who looks for it."""
    part = manifest.split(split)
    place = int(kept_places(manifest, split)[row])
    identity = int(np.searchsorted(np.cumsum(part.images), place, side="right"))
    nth = place - int(part.images[:identity].sum()) + 1
    return (
        f"image {nth} of identity {part.names[identity]} (pid {part.pids[identity]}, row {row}) in "
        f"{part.shards[part.shard[identity]].name}"
    )


def kept_places(manifest: Manifest, split: str) -> np.ndarray:
    """(N,) places in storage order of the images that have features: all but junk."""
    part = manifest.split(split)
    return np.flatnonzero(np.repeat(part.pids != JUNK, part.images))


def domain_of_run(found: Path, root: str, manifest: Manifest, config: Config, trained_on: str) -> Domain:
    pixels = build_pixels(config, scale=max(1, round(SHOWN_HEIGHT / config.data.height)))

    def read(split: str, rows: Sequence[int]) -> list[np.ndarray]:
        return read_images(root, manifest, split, kept_places(manifest, split)[list(rows)].tolist(), pixels)

    notes, warnings = [], []
    if trained_on and trained_on != manifest.fingerprint:
        notes.append(
            f"Across domains: the checkpoint was trained on other data (fingerprint {trained_on[:12]}) than it is "
            f"evaluated on ({manifest.fingerprint[:12]})."
        )
    if manifest.skipped:
        warnings.append(f"{len(manifest.skipped)} broken images were left out when the shards were built")
    return Domain(manifest.dataset, str(found), manifest.fingerprint, read, "", notes, warnings)


def evaluate_features(options: EvaluateConfig) -> Path:
    """Another system's features: no model, and pictures only where the files name them."""
    started = time.perf_counter()
    make_folder(Path(options.out))
    query, gallery = map(read_features, options.features)
    accelerator = start_accelerator("no", options.timeout_s)
    out = step_aside(Path(options.out), describe("", "", "", query.features, gallery.features))
    row = rank_protocols(move(query.features, accelerator.device), move(gallery.features, accelerator.device), options)
    if accelerator.is_main_process:
        facts = {
            "query": str(query.source),
            "gallery": str(gallery.source),
            "features": f"{row.query.embeddings.shape[1]} dimensions",
            **say_how(options, accelerator, started),
        }
        domain = domain_of_features(out.name, query, gallery, options.images)
        tables = {out: finish(out, domain, {FOREIGN: row}, facts, options)}
        say_notes(tables)
        track(options, {}, out.name, out, tables)
    end(accelerator)
    return out


def move(features: Features, device: torch.device) -> Features:
    """On a CPU nothing is copied: mapped files stay mapped."""
    return Features(features.embeddings.to(device), features.pids, features.camids, features.distractors)


def domain_of_features(dataset: str, query: Foreign, gallery: Foreign, images: str) -> Domain:
    splits = {"query": query, "gallery": gallery}

    def read(split: str, rows: Sequence[int]) -> list[np.ndarray | None]:
        folder = Path(images) if images else splits[split].source.parent
        return read_pictures(splits[split], rows, folder, MAX_PIXELS)

    named = query.paths is not None and gallery.paths is not None
    no_pictures = "" if named else "As text: the feature files name no images: they have no paths."
    notes = []
    if not (query.knows_cameras and gallery.knows_cameras):
        notes.append(
            "No camera ids: images of the query's identity by its own camera are not removed. Figures are then higher "
            "than published ones, which remove them."
        )
    warnings = []
    if gallery.features.distractors is None and bool((gallery.features.pids == 0).any()):
        number = int((gallery.features.pids == 0).sum())
        warnings.append(
            f"{number:,} gallery images have pid 0 and the file has no distractors key: they count as one identity"
        )
    source = f"{query.source}, {gallery.source}"
    return Domain(dataset, source, "", read if named else None, no_pictures, notes, warnings)


def say_how(options: EvaluateConfig, accelerator: Accelerator, started: float) -> dict[str, str]:
    """Facts that every report has."""
    reranking = f"k1 {options.rerank_k1}, k2 {options.rerank_k2}, λ {options.rerank_lambda}"
    return {
        "similarity": options.metric,
        **({"re-ranking": reranking} if options.rerank else {}),
        "processes": str(accelerator.num_processes),
        "device": f"{accelerator.device}, torch {torch.__version__}",
        "precision": "float32" if options.precision == "no" else "bfloat16 autocast",
        "time": f"{time.perf_counter() - started:.1f} s",
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def finish(
    out: Path, domain: Domain, rows: dict[str, Evaluated], facts: dict[str, str], options: EvaluateConfig
) -> Results:
    """Write one dataset's files, print its table and warnings, and return the figures by model and protocol."""
    earlier = read_about(out)
    report, warnings = write_domain(out, domain, rows, facts, options.ranks, options.metric)
    first = next(iter(rows.values()))
    for name, features in (("query.npz", first.query), ("gallery.npz", first.gallery)):
        if options.save_features:
            write_features(out / name, features)
        elif earlier and not options.features:  # those of the report before this one; with --features the user's own
            (out / name).unlink(missing_ok=True)
    tables = {name: row.figures() for name, row in rows.items()}
    said = [format_results(tables, options.ranks), *(f"warning: {text}" for text in warnings), f"report: {report}"]
    print("\n".join([f"\n{out.name}", *said]), flush=True)
    return tables


def write_domains(base: Path, tables: dict[Path, Results], ranks: Sequence[int]) -> None:
    """domains.json and domains.txt: the first model's figures by dataset (its report's folder) and protocol."""
    domains = first_models(tables)
    text = format_results(domains, ranks, "dataset")
    write_json(base / "domains.json", domains)
    (base / "domains.txt").write_text(text + "\n")
    print(f"\nall datasets\n{text}\ntable: {base / 'domains.txt'}", flush=True)


def first_models(tables: dict[Path, Results]) -> Results:
    return {out.name: next(iter(models.values())) for out, models in tables.items()}


def say_notes(tables: dict[Path, Results]) -> None:
    """Once, under all tables."""
    everything = {f"{out} {model}": figures for out, models in tables.items() for model, figures in models.items()}
    print(f"\n{format_notes(everything)}", flush=True)


def track(options: EvaluateConfig, more: dict[str, Any], name: str, folder: Path, tables: dict[Path, Results]) -> None:
    """The same tables and pictures in W&B, as a run of its own beside the training run."""
    config = {"evaluate": to_dict(options), "datasets": [out.name for out in tables], **more}
    tracker = Tracker(
        folder, active=True, mode=options.wandb, project=options.project, name=name, job_type="eval", config=config
    )
    scalars: dict[str, float] = {}
    for out, models in tables.items():
        prefix = f"eval/{out.name}"
        first = next(iter(models.values()))
        for protocol, figures in first.items():
            values = {"mAP": figures["mAP"], "mINP": figures["mINP"], "rank1": figures["cmc"][0]}
            scalars |= {f"{prefix}/{protocol}/{key}": value for key, value in values.items()}
        tracker.log_table(0, f"{prefix}/table", *list_raw(models, "model", options.ranks))
        tracker.log_table(0, f"{prefix}/cost", [*COST_COLUMNS], [list(row) for row in list_cost(first)])
        tracker.log_pictures(0, {f"{prefix}/{key}": path for key, path in list_pictures(out).items()})
    if len(tables) > 1:
        tracker.log_table(0, "eval/domains", *list_raw(first_models(tables), "dataset", options.ranks))
    tracker.log(0, scalars)
    tracker.summarize(scalars)
    tracker.finish()


def list_raw(results: Results, kind: str, ranks: Sequence[int]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table for W&B; the first column's `kind` is what the results are by."""
    rows = [
        [name, protocol, *(figures[key] for key in RAW), *(figures["cmc"][rank - 1] for rank in ranks)]
        for name, protocols in results.items()
        for protocol, figures in protocols.items()
    ]
    return [kind, "protocol", *RAW, *(f"rank-{rank}" for rank in ranks)], rows


def end(accelerator: Accelerator) -> None:
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
