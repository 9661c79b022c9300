"""Logging of an evaluation to W&B, as a run of its own in the group of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from reid.config import EvaluateConfig, to_dict
from reid.evaluation.dataset_report import DatasetReport, Evaluation
from reid.evaluation.query_table import COLUMNS, list_queries
from reid.evaluation.sources import Source
from reid.model.features import FLIP_TEST
from reid.reports.report import list_pictures
from reid.reports.tables import COST_COLUMNS, Results, list_cost
from reid.runs.tracking import Tracker

RAW = ("mAP", "mAP_trapezoid", "mINP", "gallery_size", "num_valid_queries")  # columns of the table of metrics


@dataclass(frozen=True)
class DatasetLog:
    """What W&B gets of one dataset. The first model is the one that is evaluated.

    prefix: begins all names.
    folder: of the report.
    results: model -> protocol -> `Result.to_json()`.
    queries: rows of the table of queries.
    """

    prefix: str
    folder: Path
    results: Results
    queries: list[list[Any]] = field(default_factory=list)

    @property
    def trained(self) -> dict[str, dict[str, Any]]:
        """`results` of the first model."""
        return next(iter(self.results.values()))

    @property
    def scalars(self) -> dict[str, float]:
        """Metrics by `<protocol>/<name>`, as `Validation.evaluate` names them."""
        found: dict[str, float] = {}
        for protocol, values in self.trained.items():
            shown = {"mAP": values["mAP"], "mINP": values["mINP"], "rank1": values["cmc"][0]}
            found |= {f"{protocol}/{name}": value for name, value in shown.items()}
        return found


def choose_mode(options: EvaluateConfig, source: Source) -> str:
    """Return the mode of W&B: online, offline or off."""
    return source.track.wandb if options.wandb == "auto" else options.wandb


def collect(
    options: EvaluateConfig, source: Source, report: DatasetReport, folder: Path, evaluations: Mapping[str, Evaluation]
) -> DatasetLog:
    """Keep what W&B gets of a dataset, without its features. Pictures are read only if W&B is not off."""
    queries: list[list[Any]] = []
    if choose_mode(options, source) != "off":
        queries = list_queries(next(iter(evaluations.values())), report.read_named, options.metric)
    results = {name: evaluation.to_json() for name, evaluation in evaluations.items()}
    return DatasetLog(source.prefix_of(report), folder, results, queries)


def track(options: EvaluateConfig, source: Source, logs: Sequence[DatasetLog]) -> None:
    """Log metrics, tables, charts and pictures to W&B, at the step of the checkpoint and with the training's names."""
    config = {"evaluate": to_dict(options), "datasets": [log.folder.name for log in logs], **source.tracked_config()}
    name = (source.track.name or source.name) + (f", {FLIP_TEST}" if options.flip else "")
    tracker = Tracker(
        source.folder, active=True, mode=choose_mode(options, source), project=options.project or source.track.project,
        name=name, group=source.track.group or source.name, job_type="eval", config=config,
    )  # fmt: skip
    step = source.step or 0
    if source.step is None and tracker.where:
        print(f"note: {source.folder}: its checkpoint does not say its step, so W&B has the evaluation at step 0")
    scalars = list_scalars(logs, source.is_joint)
    tracker.log(step, scalars if source.epoch is None else {"epoch": source.epoch, **scalars})
    for log in logs:
        log_dataset(tracker, step, log, options.ranks)
    if len(logs) > 1:
        by_dataset = {log.folder.name: log.trained for log in logs}
        tracker.log_table(step, "eval/domains", *list_raw(by_dataset, "dataset", options.ranks))
    tracker.summarize(scalars)
    if tracker.where:
        print(f"W&B: {tracker.where}", flush=True)
    tracker.finish()


def list_scalars(logs: Sequence[DatasetLog], with_means: bool) -> dict[str, float]:
    """Return the metrics of each dataset, and their means if asked for."""
    scalars = {f"{log.prefix}/{name}": value for log in logs for name, value in log.scalars.items()}
    if with_means:
        for name in dict.fromkeys(name for log in logs for name in log.scalars):
            scalars[f"eval/{name}"] = fmean(log.scalars[name] for log in logs if name in log.scalars)
    return scalars


def log_dataset(tracker: Tracker, step: int, log: DatasetLog, ranks: Sequence[int]) -> None:
    """Log the tables, CMC charts and pictures of one dataset to W&B."""
    tracker.log_table(step, f"{log.prefix}/table", *list_raw(log.results, "model", ranks))
    tracker.log_table(step, f"{log.prefix}/cost", [*COST_COLUMNS], [list(row) for row in list_cost(log.trained)])
    if log.queries:
        tracker.log_table(step, f"{log.prefix}/queries", [*COLUMNS], log.queries)
    for protocol, metrics in log.trained.items():
        lines = {name: result[protocol]["cmc"] for name, result in log.results.items() if protocol in result}
        title = f"CMC, {protocol} protocol, {log.folder.name}"
        shown = range(1, len(metrics["cmc"]) + 1)
        tracker.log_lines(step, f"{log.prefix}/{protocol}/cmc", shown, lines, title=title, xname="rank")
    tracker.log_pictures(step, {f"{log.prefix}/{name}": path for name, path in list_pictures(log.folder).items()})


def list_raw(results: Results, kind: str, ranks: Sequence[int]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of a table for W&B. `kind`: the name of the first column."""
    rows = [
        [name, protocol, *(metrics[key] for key in RAW), *(metrics["cmc"][rank - 1] for rank in ranks)]
        for name, by_protocol in results.items()
        for protocol, metrics in by_protocol.items()
    ]
    return [kind, "protocol", *RAW, *(f"rank-{rank}" for rank in ranks)], rows
