"""The evaluation program: `accelerate launch evaluate.py --run runs/quickstart`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from reid import program
from reid.config import EvaluateConfig, check_evaluation
from reid.distributed import start_accelerator
from reid.evaluation.about import write_json
from reid.evaluation.comparison import compare, format_comparison
from reid.evaluation.sources import FeatureSource, RunSource, Source
from reid.evaluation.track import DatasetLog, collect, track
from reid.files import make_folder, write_atomically
from reid.metrics.protocols import PROTOCOLS
from reid.model.features import FLIP_TEST
from reid.reports.tables import Results, format_notes, format_now, format_results, format_thresholds

if TYPE_CHECKING:
    from accelerate import Accelerator


def start(options: EvaluateConfig) -> None:
    """Run the program: an error that the user can fix is one line and an exit status."""
    program.call(lambda: evaluate(options))


def evaluate(options: EvaluateConfig) -> dict[Path, Results]:
    """Evaluate, write a report for each dataset, and print the tables.

    Returns:
        On rank 0 the metrics of each report by its folder, those of the baselines after the model's; otherwise nothing.

    Raises:
        ValueError: the options are wrong.
    """
    check_evaluation(options)
    can_rerank = [name for name, protocol in PROTOCOLS.items() if protocol.can_rerank]
    if options.rerank and not set(options.protocols) & set(can_rerank):
        raise ValueError(f"--rerank re-ranks {' and '.join(can_rerank)}; add one of them to --protocols")
    if options.compare:
        compare_reports(options)
        return {}
    started = time.perf_counter()
    source: Source = FeatureSource(options) if options.features else RunSource(options)
    # The timeout is for ranks that wait while rank 0 re-ranks and draws.
    accelerator = start_accelerator("no", options.timeout_s)

    reports: dict[Path, Results] = {}  # by folder
    logged: list[DatasetLog] = []
    for report, evaluations in source.evaluate(accelerator):
        if accelerator.is_main_process:
            report.facts |= list_facts(options, accelerator, started)
            page, warnings = report.write(evaluations, options, taken=reports)
            reports[page.parent] = {name: evaluation.to_json() for name, evaluation in evaluations.items()}
            lines = [f"\n{page.parent.name}", format_results(reports[page.parent], options.ranks)]
            lines += filter(None, [format_thresholds(next(iter(evaluations.values())).thresholds)])
            print("\n".join([*lines, *(f"warning: {text}" for text in warnings), f"report: {page}"]), flush=True)
            logged.append(collect(options, source, report, page.parent, evaluations))

    if accelerator.is_main_process:
        by_dataset = {folder.name: next(iter(models.values())) for folder, models in reports.items()}
        if len(reports) > 1:
            table = format_results(by_dataset, options.ranks, "dataset")
            write_json(source.out / "domains.json", by_dataset)
            write_atomically(source.out / "domains.txt", table + "\n")
            heading = f"all datasets, {FLIP_TEST}" if options.flip else "all datasets"
            print(f"\n{heading}\n{table}\ntable: {source.out / 'domains.txt'}", flush=True)
        print(f"\n{format_notes(by_dataset)}", flush=True)
        track(options, source, logged)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return reports


def compare_reports(options: EvaluateConfig) -> None:
    """Print the comparison of the reports of `--compare`, and write its page if there is `--out`."""
    if options.out:
        make_folder(Path(options.out))
    compared = compare(options.compare)
    if os.environ.get("RANK", "0") == "0":
        print(format_comparison(compared), flush=True)
        if options.out:
            from reid.evaluation.comparison_page import write_comparison  # imports torchvision

            print(f"\ncomparison: {write_comparison(Path(options.out), compared)}", flush=True)


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
        "made": format_now(),
    }
