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
from reid.config import EvaluateConfig, check_evaluation, to_dict
from reid.distributed import start_accelerator
from reid.evaluation.about import write_json
from reid.evaluation.comparison import compare, format_comparison
from reid.evaluation.evaluator import FeatureSource, RunSource
from reid.files import make_folder, write_atomically
from reid.metrics.protocols import PROTOCOLS
from reid.model.features import FLIP_TEST
from reid.reports.report import list_pictures
from reid.reports.tables import COST_COLUMNS, Results, format_notes, format_results, format_thresholds, list_cost
from reid.runs.tracking import Tracker

if TYPE_CHECKING:
    from accelerate import Accelerator

RAW = ("mAP", "mAP_trapezoid", "mINP", "gallery_size", "num_valid_queries")  # columns of W&B's table


def start(options: EvaluateConfig) -> None:
    """Run the program: an error that the user can fix is one line and an exit status."""
    program.call(lambda: evaluate(options))


def evaluate(options: EvaluateConfig) -> None:
    """Evaluate, write a report for each dataset, and print the tables. Raises ValueError if the options are wrong."""
    check_evaluation(options)
    can_rerank = [name for name, protocol in PROTOCOLS.items() if protocol.can_rerank]
    if options.rerank and not set(options.protocols) & set(can_rerank):
        raise ValueError(f"--rerank re-ranks {' and '.join(can_rerank)}; add one of them to --protocols")
    if options.compare:
        if options.out:
            make_folder(Path(options.out))
        compared = compare(options.compare)
        if os.environ.get("RANK", "0") == "0":
            print(format_comparison(compared), flush=True)
            if options.out:
                from reid.evaluation.comparison_page import write_comparison  # imports torchvision

                print(f"\ncomparison: {write_comparison(Path(options.out), compared)}", flush=True)
        return
    started = time.perf_counter()
    source = FeatureSource(options) if options.features else RunSource(options)
    # The timeout is for ranks that wait while rank 0 re-ranks and draws.
    accelerator = start_accelerator("no", options.timeout_s)

    reports: dict[Path, Results] = {}  # by folder
    for report, evaluations in source.evaluate(accelerator):
        if accelerator.is_main_process:
            report.facts |= list_facts(options, accelerator, started)
            page, warnings = report.write(evaluations, options, taken=reports)
            reports[page.parent] = {name: evaluation.to_json() for name, evaluation in evaluations.items()}
            lines = [f"\n{page.parent.name}", format_results(reports[page.parent], options.ranks)]
            lines += filter(None, [format_thresholds(next(iter(evaluations.values())).thresholds)])
            print("\n".join([*lines, *(f"warning: {text}" for text in warnings), f"report: {page}"]), flush=True)

    if accelerator.is_main_process:
        by_dataset = {folder.name: next(iter(models.values())) for folder, models in reports.items()}
        if len(reports) > 1:
            table = format_results(by_dataset, options.ranks, "dataset")
            write_json(source.out / "domains.json", by_dataset)
            write_atomically(source.out / "domains.txt", table + "\n")
            heading = f"all datasets, {FLIP_TEST}" if options.flip else "all datasets"
            print(f"\n{heading}\n{table}\ntable: {source.out / 'domains.txt'}", flush=True)
        print(f"\n{format_notes(by_dataset)}", flush=True)
        track(options, source, reports, by_dataset)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def list_facts(options: EvaluateConfig, accelerator: Accelerator, started: float) -> dict[str, str]:
    """List what every report says about how it was made."""
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


def track(
    options: EvaluateConfig, source: RunSource | FeatureSource, reports: dict[Path, Results], by_dataset: Results
) -> None:
    """Log the tables and pictures to W&B, as a run of its own next to the training run."""
    config = {"evaluate": to_dict(options), "datasets": [*by_dataset]}
    folder = next(iter(reports))
    name = folder.name
    if isinstance(source, RunSource):
        folder, name, config["train"] = source.folder, source.config.name, to_dict(source.config)
    tracker = Tracker(
        folder, active=True, mode=options.wandb, project=options.project, name=name, job_type="eval", config=config
    )
    scalars: dict[str, float] = {}
    for out, models in reports.items():
        prefix = f"eval/{out.name}"
        for protocol, metrics in by_dataset[out.name].items():
            values = {"mAP": metrics["mAP"], "mINP": metrics["mINP"], "rank1": metrics["cmc"][0]}
            scalars |= {f"{prefix}/{protocol}/{key}": value for key, value in values.items()}
        tracker.log_table(0, f"{prefix}/table", *list_raw(models, "model", options.ranks))
        costs = [list(row) for row in list_cost(by_dataset[out.name])]
        tracker.log_table(0, f"{prefix}/cost", [*COST_COLUMNS], costs)
        tracker.log_pictures(0, {f"{prefix}/{key}": path for key, path in list_pictures(out).items()})
    if len(reports) > 1:
        tracker.log_table(0, "eval/domains", *list_raw(by_dataset, "dataset", options.ranks))
    tracker.log(0, scalars)
    tracker.summarize(scalars)
    if tracker.where:
        print(f"W&B: {tracker.where}", flush=True)
    tracker.finish()


def list_raw(results: Results, kind: str, ranks: Sequence[int]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of a table for W&B. `kind`: the name of the first column."""
    rows = [
        [name, protocol, *(metrics[key] for key in RAW), *(metrics["cmc"][rank - 1] for rank in ranks)]
        for name, by_protocol in results.items()
        for protocol, metrics in by_protocol.items()
    ]
    return [kind, "protocol", *RAW, *(f"rank-{rank}" for rank in ranks)], rows
