"""The evaluation program: `accelerate launch evaluate.py --run runs/quickstart`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reid import program
from reid.config import EvaluateConfig, check_evaluation, load, parse, to_dict
from reid.distributed import check_precision, start_accelerator
from reid.evaluation.comparison import compare, describe, format_comparison, write_comparison
from reid.evaluation.dataset_report import (
    Domain,
    Evaluated,
    choose_folder,
    domain_of_features,
    domain_of_run,
    read_about,
    step_aside,
    write_domain,
    write_json,
)
from reid.evaluation.evaluator import evaluate_model, load_manifests, rank_protocols
from reid.evaluation.external_features import read_features, write_features
from reid.files import check_writable, make_folder
from reid.metrics.features import Features
from reid.reports.report import list_pictures
from reid.reports.tables import COST_COLUMNS, RERANKED, Results, format_notes, format_results, list_cost
from reid.runs import checkpoint
from reid.runs.models import build_models, find_run
from reid.runs.tracking import Tracker

if TYPE_CHECKING:
    from accelerate import Accelerator

FOREIGN = "features"  # the row's name
RAW = ("mAP", "mAP_trapezoid", "mINP", "gallery_size", "num_valid_queries")  # columns of W&B's table


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
    run, found = find_run(options.run, options.checkpoint)
    folder, config = run.path, load(run.config)
    base = Path(options.out or run.reports)
    check_writable(base, "--out")
    manifests = load_manifests(options.data or [config.data.root])
    models = build_models(found, config, options.baselines)
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
