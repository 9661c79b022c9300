"""Results as tables of text: the cells that the terminal, the page and W&B share. Takes `Result.to_json()` alone."""

import math
import textwrap
from collections.abc import Sequence

from reid.metrics.protocols import COMPARES_WITH

Results = dict[str, dict[str, dict]]  # model -> protocol -> Result.to_json(); the first model is the one reported on
RANKS = (1, 5, 10)
RERANKED = {"image": "image + re-ranking", "centroid_all": "centroid_all + re-ranking"}  # protocol -> its row
TABLE_NOTE = (
    "In percent. Queries: those with a possible match. 95%: bootstrap interval of mAP over the queries. Trapezoid: mAP "
    "as the Market-1501 authors' script integrates it. R1: share of queries that is right at rank 1."
)
CENTROID_NOTE = (
    "Under centroid and centroid_all a query has one relevant entry, so mAP is the mean reciprocal rank (at least "
    "rank-1): never compare it with image mAP."
)
PROTOCOLS = {
    "image": "every gallery image",
    "centroid": "one mean per identity, without the query's camera",
    "centroid_all": "one mean per identity, all cameras",
    "ctl_published": "as the CTL authors' code lists it, two faults included; it explains published figures",
    RERANKED["image"]: "every gallery image, in the order after k-reciprocal re-ranking",
    RERANKED["centroid_all"]: "one mean per identity, all cameras, in the order after k-reciprocal re-ranking",
}
LITERATURE = {
    **COMPARES_WITH,
    RERANKED["image"]: "figures that say “with re-ranking” and the same k1, k2 and λ, on images",
    RERANKED["centroid_all"]: "no published table",
}


def column_names(ranks: Sequence[int] = RANKS) -> tuple[str, ...]:
    return ("gallery", "queries", "mAP", "95%", "mINP", *(f"R{rank}" for rank in ranks), "trapezoid")


def format_cells(figures: dict, ranks: Sequence[int] = RANKS) -> tuple[str, ...]:
    """One row's cells, in the order of `column_names`; `-` for what the figures do not hold."""
    cmc = figures["cmc"]
    return (
        f"{figures['gallery_size']:,}",
        f"{figures['num_valid_queries']:,}",
        percent(figures["mAP"]),
        format_interval(figures.get("mAP_interval")),
        percent(figures["mINP"]),
        *(percent(cmc[rank - 1]) if rank <= len(cmc) else "-" for rank in ranks),
        percent(figures["mAP_trapezoid"]),
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def format_interval(ends: Sequence[float] | None) -> str:
    """`84.6–86.2`, in percent."""
    return "-" if ends is None or any(map(math.isnan, ends)) else f"{percent(ends[0])}–{percent(ends[1])}"


def format_results(results: Results, ranks: Sequence[int] = RANKS, kind: str = "model") -> str:
    """Plain text for a terminal: a row per protocol of each model (or of whatever the first column's `kind` says)."""
    rows = [
        (model if first else "", protocol, *format_cells(figures, ranks))
        for model, protocols in results.items()
        for first, (protocol, figures) in zip([True] + [False] * len(protocols), protocols.items(), strict=False)
    ]
    return format_table((kind, "protocol", *column_names(ranks)), rows, left=2)


def format_notes(results: Results) -> str:
    """What the tables' figures are, and for each protocol which published ones they compare with; plain text."""
    compare = compares_with(results)
    widest = max(map(len, compare), default=0)
    lines = [f"  {protocol:<{widest}}  {text}" for protocol, text in compare.items()]
    return "\n".join([textwrap.fill(f"{TABLE_NOTE} {CENTROID_NOTE}", 110), "Compares with", *lines])


def list_protocols(results: Results) -> list[str]:
    return list(dict.fromkeys(protocol for protocols in results.values() for protocol in protocols))


def compares_with(results: Results) -> dict[str, str]:
    return {p: LITERATURE[p] for p in list_protocols(results) if p in LITERATURE}


COST_COLUMNS = ("protocol", "entries", "MiB", "comparisons", "share of image", "mAP", "R1")


def list_cost(protocols: dict[str, dict]) -> list[tuple[str, ...]]:
    """Rows of COST_COLUMNS: what a search in each gallery holds and computes beside what it finds."""
    rows: list[tuple[str, ...]] = []
    image = protocols.get("image", {}).get("comparisons")
    for protocol, figures in protocols.items():
        if protocol in RERANKED.values() or "comparisons" not in figures:
            continue  # re-ranking searches the same gallery, and then works on
        rows.append((
            protocol,
            f"{figures['gallery_size']:,}",
            f"{figures['gallery_bytes'] / 2**20:,.2f}",
            f"{figures['comparisons']:,}",
            f"{percent(figures['comparisons'] / image)}%" if image else "-",
            percent(figures["mAP"]),
            percent(figures["cmc"][0]),
        ))  # fmt: skip
    return rows


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns of equal width under a rule; the first `left` columns stand left, figures right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [
            f"{cell:<{w}}" if i < left else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])
