"""Metrics as tables of text: the cells that the terminal, the page and W&B share."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from reid.metrics.protocols import PROTOCOLS

Results = dict[str, dict[str, dict]]  # model -> protocol -> Result.to_json(); the first model is the one reported on
RANKS = (1, 5, 10)
TABLE_NOTE = (
    "In percent. Queries: those with a possible match. 95%: bootstrap interval of mAP over the queries. Trapezoid: mAP "
    "as the Market-1501 authors' script integrates it. R1: share of queries that is right at rank 1."
)
CENTROID_NOTE = (
    "Under centroid and centroid_all a query has one relevant entry, so mAP is the mean reciprocal rank (at least "
    "rank-1): never compare it with image mAP."
)
_ALL = PROTOCOLS.values()
RERANKED = {row.name: row.reranked_name for row in _ALL if row.can_rerank}
# By row of a table: what the gallery lists, and with which published metrics the row compares.
EXPLANATIONS = {row.name: (row.text, row.compares_with) for row in _ALL} | {
    row.reranked_name: (f"{row.text}, in the order after k-reciprocal re-ranking", row.reranked_compares_with)
    for row in _ALL if row.can_rerank
}  # fmt: skip


COLUMNS = {
    "protocol": "what the gallery lists, and which entries are removed for a query",
    "gallery": "number of entries that are searched",
    "queries": "number of queries with a possible match",
    "mAP": "mean average precision, in percent",
    "95%": "bootstrap interval of 95%",
    "mINP": "mean of the matches' number divided by the rank of the last match, in percent",
    "trapezoid": "mAP as the Market-1501 authors' script integrates it, in percent",
    "entries": "images or centroids that are stored and compared",
    "MiB": "memory of the entries' features in float32",
    "comparisons": "similarities that all queries need",
    "of image's": "comparisons as a share of those of the image gallery",
    "chosen for": "rate that the threshold was chosen for",
    "threshold": "least score that is accepted",
    "FPR": "false positive rate: accepted share of the pairs of two persons",
    "TPR": "true positive rate: accepted share of the pairs of one person",
    "false alarms": "answered share of the queries of people who are not in the gallery",
    "identified": "share of the other queries that is answered with the right person",
    "first match": "rank of the first entry of the query's identity",
    "AP": "average precision of the query, in percent",
    "score": "similarity; larger is nearer",
    "rank": "place in the results of the query",
    "Δ": "difference in mAP from the first report, in points of percent",
    "95% of Δ": "bootstrap interval of the difference over the same queries",
    "p": "two-sided probability of a difference this large by chance",
    "std": "standard deviation of one run over seeds",
    "runs": "finished runs of this setting",
}


def explain_column(name: str) -> str:
    """Return what a column of a table means; "" for one whose name says it."""
    rank = name.removeprefix("R")
    return f"share of queries with a match in the first {rank}, in percent" if rank.isdigit() else COLUMNS.get(name, "")


def column_names(ranks: Sequence[int] = RANKS) -> tuple[str, ...]:
    return ("gallery", "queries", "mAP", "95%", "mINP", *(f"R{rank}" for rank in ranks), "trapezoid")


def format_cells(metrics: dict, ranks: Sequence[int] = RANKS) -> tuple[str, ...]:
    """Return the cells of one row, in the order of `column_names`; `-` for a missing value."""
    cmc = metrics["cmc"]
    return (
        f"{metrics['gallery_size']:,}",
        f"{metrics['num_valid_queries']:,}",
        percent(metrics["mAP"]),
        format_interval(metrics.get("mAP_interval")),
        percent(metrics["mINP"]),
        *(percent(cmc[rank - 1]) if rank <= len(cmc) else "-" for rank in ranks),
        percent(metrics["mAP_trapezoid"]),
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def format_interval(ends: Sequence[float] | None) -> str:
    """Format an interval in percent: `84.6–86.2`."""
    return "-" if ends is None or any(map(math.isnan, ends)) else f"{percent(ends[0])}–{percent(ends[1])}"


def format_now() -> str:
    """Return date and time in UTC, to the minute, as pages show when they were made."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def format_results(results: Results, ranks: Sequence[int] = RANKS, kind: str = "model") -> str:
    """Format a table for a terminal: a row per protocol of each model, or of each `kind`, such as `dataset`."""
    rows = [
        ("" if i else model, protocol, *format_cells(metrics, ranks))
        for model, by_protocol in results.items()
        for i, (protocol, metrics) in enumerate(by_protocol.items())
    ]
    return format_table((kind, "protocol", *column_names(ranks)), rows, left=2)


def format_notes(results: Results) -> str:
    """Explain the tables, and say for each protocol which published metrics compare with it."""
    known = explain(results)
    widest = max(map(len, known), default=0)
    lines = [f"  {protocol:<{widest}}  {published}" for protocol, (_, published) in known.items()]
    return "\n".join([textwrap.fill(f"{TABLE_NOTE} {CENTROID_NOTE}", 110), "Compares with", *lines])


def list_protocols(results: Results) -> list[str]:
    return list(dict.fromkeys(protocol for by_protocol in results.values() for protocol in by_protocol))


def explain(results: Results) -> dict[str, tuple[str, str]]:
    return {name: EXPLANATIONS[name] for name in list_protocols(results) if name in EXPLANATIONS}


COST_COLUMNS = ("protocol", "entries", "MiB", "comparisons", "of image's", "mAP", "R1")


def list_cost(results: dict[str, dict]) -> list[tuple[str, ...]]:
    """Return rows of COST_COLUMNS for one model: what a search in each gallery stores and computes, and what it finds.

    Re-ranked rows are left out: they search the same gallery first.
    """
    image = results.get("image", {}).get("comparisons")
    return [
        (
            protocol,
            f"{metrics['gallery_size']:,}",
            f"{metrics['gallery_bytes'] / 2**20:,.2f}",
            f"{metrics['comparisons']:,}",
            f"{percent(metrics['comparisons'] / image)}%" if image else "-",
            percent(metrics["mAP"]),
            percent(metrics["cmc"][0]),
        )
        for protocol, metrics in results.items()
        if protocol not in RERANKED.values() and "comparisons" in metrics
    ]


THRESHOLD_COLUMNS = ("chosen for", "threshold", "FPR", "95%", "TPR", "95%")
OPEN_SET_COLUMNS = ("chosen for", "threshold", "false alarms", "identified")


def list_thresholds(verification: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return rows of THRESHOLD_COLUMNS, the last for the equal error rate. verification: of thresholds.json."""
    rows = [
        (
            f"FPR {wanted}",
            f"{point['threshold']:.4f}",
            f"{point['false_positive_rate']:.2e}",
            "–".join(f"{end:.1e}" for end in point["false_positive_rate_interval"]),
            f"{percent(point['true_positive_rate'])}%",
            f"{format_interval(point['true_positive_rate_interval'])}%",
        )
        for wanted, point in verification["thresholds"].items()
    ]
    equal = verification["equal_error"]
    error, right = f"{equal['rate']:.2e}", f"{percent(1 - equal['rate'])}%"
    return [*rows, ("equal error", f"{equal['threshold']:.4f}", error, "-", right, "-")]


def list_open_set(open_set: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return rows of OPEN_SET_COLUMNS. open_set: of thresholds.json."""
    return [
        (
            f"false alarms {wanted}",
            f"{point['threshold']:.4f}",
            f"{percent(point['false_alarm_rate'])}%",
            f"{percent(point['identification_rate'])}%",
        )
        for wanted, point in open_set["thresholds"].items()
    ]


def format_thresholds(thresholds: Mapping[str, Any]) -> str:
    """Format the tables of thresholds for a terminal; "" without any."""
    tables = []
    if verification := thresholds.get("verification"):
        pairs = verification["pairs"]
        title = (
            f"pairs of images by different cameras: {pairs['genuine']:,} of one person, {pairs['impostor']:,} of two"
        )
        tables += [title, format_table(THRESHOLD_COLUMNS, list_thresholds(verification))]
    if open_set := thresholds.get("open_set"):
        queries = open_set["queries"]
        title = f"open set: {queries['mated']:,} queries of people in the gallery, {queries['unmated']:,} of others"
        tables += [title, format_table(OPEN_SET_COLUMNS, list_open_set(open_set))]
    return "\n".join(tables)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Format a table with a rule under the header; the first `left` columns are aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    aligns = ["<" if i < left else ">" for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(f"{cell:{align}{width}}" for cell, align, width in zip(line, aligns, widths, strict=True)).rstrip()
        for line in lines
    )
