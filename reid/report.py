"""What people look at after an evaluation: a table, CMC curves, rank lists, and one page that holds them all.

Takes plain figures (`Result.to_json()`) and pixels, so it can draw any system's results. The page is one HTML file
without scripts or links: it opens offline, on a phone, in light and dark. What comes from outside is escaped.
"""

import base64
import io
import textwrap
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from reid.pictures import (
    DARK,
    LIGHT,
    Ranked,
    RankList,
    Results,
    draw_cmc,
    draw_rank_lists,
    list_protocols,
    mark,
    percent,
)

__all__ = ["RankList", "Ranked", "format_table", "write_report"]

TABLE_NOTE = "In percent. Queries: those with a possible match. R1: the share of them that is right at rank 1."
CENTROID_NOTE = (
    "A centroid gallery holds one relevant entry per query, so its mAP is the mean reciprocal rank (at least rank-1): "
    "never compare it with image mAP."
)
PROTOCOLS = {
    "image": "every gallery image",
    "centroid": "one mean per identity, without the query's camera",
    "centroid_all": "one mean per identity, all cameras",
}
COLUMNS = ("gallery", "queries", "mAP", "mINP", "R1", "R5", "R10")
RANKS = (1, 5, 10)
THUMBNAIL_PX = 256  # longest side of a picture inside the page


def write_report(
    folder: Path,
    dataset: str,
    results: Results,
    rank_lists: list[RankList],
    facts: dict[str, str],
    warnings: list[str],
) -> Path:
    """Write cmc.png, rank_lists.png (if there are lists) and report.html into `folder`; return the page's path.

    facts: what was run, name -> value, in the order shown. ValueError on empty results or pictures that are not RGB.
    """
    _check(results, rank_lists)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cmc.png").write_bytes(draw_cmc(results, dataset))
    if rank_lists:
        (folder / "rank_lists.png").write_bytes(draw_rank_lists(rank_lists))
    page = folder / "report.html"
    page.write_text(_page(dataset, results, rank_lists, facts, warnings), encoding="utf-8")
    return page


def format_table(results: Results) -> str:
    """The page's table as plain text, in percent, for a terminal."""
    header = ("model", "protocol", *COLUMNS)
    rows = [
        (model if first else "", protocol, *_cells(figures))
        for model, protocols in results.items()
        for first, (protocol, figures) in zip([True] + [False] * len(protocols), protocols.items(), strict=False)
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: tuple[str, ...]) -> str:
        cells = [
            f"{cell:<{w}}" if i < 2 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    note = textwrap.fill(f"{TABLE_NOTE} {CENTROID_NOTE}", max(len(rule), 60))
    return "\n".join([line(header), rule, *map(line, rows), "", note])


def _cells(figures: dict) -> tuple[str, ...]:
    cmc = figures["cmc"]
    ranks = [percent(cmc[rank - 1]) if rank <= len(cmc) else "-" for rank in RANKS]
    sizes = f"{figures['gallery_size']:,}", f"{figures['num_valid_queries']:,}"
    return (*sizes, percent(figures["mAP"]), percent(figures["mINP"]), *ranks)


def _check(results: Results, rank_lists: list[RankList]) -> None:
    if not results or not all(results.values()):
        raise ValueError(f"nothing to report: results are {results!r}; give at least one model with one protocol")
    for ranked in (picture for ranks in rank_lists for picture in (ranks.query, *ranks.gallery)):
        if ranked.image.dtype != np.uint8 or ranked.image.ndim != 3 or ranked.image.shape[2] != 3:
            raise ValueError(
                f"picture {ranked.caption!r} is {ranked.image.dtype} {ranked.image.shape}; "
                "give uint8 (height, width, 3)"
            )


def _page(
    dataset: str, results: Results, rank_lists: list[RankList], facts: dict[str, str], warnings: list[str]
) -> str:
    lists = "".join(map(_list_html, rank_lists))
    lists = f"<h2>Rank lists</h2><p class=lead>{LISTS_NOTE}</p>{lists}" if rank_lists else ""
    light, dark = (_data_url(draw_cmc(results, dataset, theme), "png") for theme in (LIGHT, DARK))
    model = next(iter(results))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{escape(dataset)} · evaluation</title>
<style>{STYLE}</style>
</head>
<body><main>
<header><p class="eyebrow">Re-identification · evaluation</p><h1>{escape(dataset)}</h1></header>
{_tiles_html(model, results[model])}
{_warnings_html(warnings)}
<h2>Results</h2>
{_table_html(results)}
<p class="note">{escape(CENTROID_NOTE)}</p>
{_protocols_html(results)}
<h2>CMC</h2>
<p class="lead">Share of queries with a match within the first ranks. Thick: {escape(model)}.</p>
<picture class="plot"><source media="(prefers-color-scheme: dark)" srcset="{dark}">
<img src="{light}" alt="CMC curves of every model and protocol"></picture>
{lists}
<h2>Run</h2>
<dl>{"".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())}</dl>
{_reading_html(results[model])}
</main></body>
</html>
"""


READING = (
    "<p>AP is the step-wise average precision of one query; mAP is its mean over the valid queries, which can match. "
    "Gallery images of the query's identity and camera are removed, junk is dropped, distractors stay; equal "
    "scores rank in gallery order. mINP is the mean of the number of matches divided by the rank of the last.</p>"
    "<p>mAP_trapezoid averages precision as the Market-1501 authors' script does"
)
LISTS_NOTE = (
    "A query and the best of its gallery. <b class=right>Green ✓</b> is the query's identity, <b class=wrong>red ✗</b> "
    "another."
)


def _tiles_html(model: str, protocols: dict[str, dict]) -> str:
    protocol = "image" if "image" in protocols else next(iter(protocols))
    figures = protocols[protocol]
    tiles = {"mAP": figures["mAP"], "Rank-1": figures["cmc"][0], "mINP": figures["mINP"]}
    cells = "".join(f"<div><b>{percent(v)}<small>%</small></b><span>{k}</span></div>" for k, v in tiles.items())
    return (
        f'<section class="tiles" aria-label="headline">{cells}<p>{escape(model)}, {escape(protocol)} gallery: '
        f"{figures['num_valid_queries']:,} of {figures['num_queries']:,} queries have a match among "
        f"{figures['gallery_size']:,} entries</p></section>"
    )


def _warnings_html(warnings: list[str]) -> str:
    if not warnings:
        return '<p class="calm">No warnings.</p>'
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    count = "1 warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
    return f'<section class="warnings"><h2>{count}</h2><ul>{items}</ul></section>'


def _table_html(results: Results) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
    groups = []
    for i, (model, protocols) in enumerate(results.items()):
        rows = "".join(map(_row_html, protocols, protocols.values()))
        name = f'<tr class="model"><th scope="rowgroup" colspan="{len(COLUMNS) + 1}">{escape(model)}</th></tr>'
        groups.append(f"<tbody{' class=main' if i == 0 else ''}>{name}{rows}</tbody>")
    return (
        f'<div class="scroll"><table><caption>{TABLE_NOTE}</caption>'
        f'<thead><tr><th scope="col">protocol</th>{head}</tr></thead>{"".join(groups)}</table></div>'
    )


def _row_html(protocol: str, figures: dict) -> str:
    cells = "".join(f"<td>{cell}</td>" for cell in _cells(figures))
    return f'<tr><th scope="row">{escape(protocol).replace("_", "_<wbr>")}</th>{cells}</tr>'


def _protocols_html(results: Results) -> str:
    items = [f"<dt>{escape(p)}</dt><dd>{escape(PROTOCOLS[p])}</dd>" for p in list_protocols(results) if p in PROTOCOLS]
    return f'<dl class="protocols">{"".join(items)}</dl>' if items else ""


def _list_html(ranks: RankList) -> str:
    gallery = "".join(
        _figure_html(picture, "right" if picture.correct else "wrong", f"{i} {mark(picture)}")
        for i, picture in enumerate(ranks.gallery, start=1)
    )
    return (
        f'<article><h3>{escape(ranks.title)} <span>AP {percent(ranks.ap)}%</span></h3><div class="ranks">'
        f'{_figure_html(ranks.query, "query", "query")}<div class="gallery">{gallery}</div></div></article>'
    )


def _figure_html(picture: Ranked, kind: str, head: str) -> str:
    image = Image.fromarray(picture.image)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    caption = escape(picture.caption)
    return (
        f'<figure class="{kind}"><img src="{_data_url(buffer.getvalue(), "jpeg")}" alt="{head} {caption}">'
        f"<figcaption><b>{head}</b> {caption}</figcaption></figure>"
    )


def _reading_html(protocols: dict[str, dict]) -> str:
    trapezoid = ", ".join(f"{escape(p)} {percent(f['mAP_trapezoid'])}" for p, f in protocols.items())
    return f"<details><summary>How to read these figures</summary>{READING}: {trapezoid}.</p></details>"


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #fff; --ink: #1f2430; --soft: #5d6675; --line: #e4e7ec;
  --accent: #0072b2; --tint: #eef5fb; --warn: #8a5a00; --warn-paper: #fff6e0; --right: #1a9850; --wrong: #d73027; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1217; --card: #171b22; --ink: #dfe3ea; --soft: #98a2b3;
  --line: #2c323c; --accent: #56b4e9; --tint: #18242f; --warn: #f0c566; --warn-paper: #2b2413; --right: #3fbf74;
  --wrong: #ff6b5e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.7rem, 5vw, 2.4rem); line-height: 1.15; margin: 0; letter-spacing: -.02em;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .75rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 0 0 .75rem; }
h3 span { color: var(--soft); font-weight: 400; margin-left: .5em; font-variant-numeric: tabular-nums; }
.eyebrow { margin: 0 0 .4rem; color: var(--accent); font-weight: 600; font-size: .85rem; }
.lead, .calm { color: var(--soft); margin: 0 0 1rem; }
.calm { margin-top: 1rem; font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: .75rem; margin-top: 1.5rem; }
.tiles div, .scroll, .plot, article, details { background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }
.tiles div { padding: 1rem 1.15rem; }
.tiles b { display: block; font-size: clamp(1.5rem, 6vw, 2.3rem); line-height: 1.1; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.tiles small { font-size: .5em; font-weight: 500; color: var(--soft); margin-left: .1em; }
.tiles span, .tiles p { color: var(--soft); font-size: .9rem; }
.tiles p { grid-column: 1 / -1; margin: 0; }
.warnings { background: var(--warn-paper); border-left: 4px solid var(--warn); border-radius: 8px;
  padding: .9rem 1.15rem; margin-top: 1.5rem; }
.warnings h2 { font-size: 1rem; margin: 0 0 .35rem; color: var(--warn); }
.warnings ul { margin: 0; padding-left: 1.1rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; color: var(--soft); font-size: .85rem; padding: .6rem 1rem; }
th, td { padding: .5rem 1rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; font-weight: 500; }
thead th { color: var(--soft); font-weight: 500; font-size: .85rem; border-bottom: 1px solid var(--line); }
.model th { font-weight: 650; padding-top: .9rem; }
tbody + tbody .model th { border-top: 1px solid var(--line); }
tbody tr:not(.model) th { padding-left: 1.9rem; color: var(--soft); }
.main { background: var(--tint); }
.main td { font-weight: 600; }
.note { border-left: 4px solid var(--accent); padding: .1rem 0 .1rem .9rem; margin: 1.25rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.25rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: .88rem; line-height: 1.75; }
.protocols { font-size: .9rem; }
.protocols dd { font: inherit; }
.plot { display: block; padding: .75rem; text-align: center; }
.plot img { width: 100%; max-width: 38rem; height: auto; }
article { padding: 1rem 1.15rem; margin-bottom: 1rem; }
.ranks { display: grid; grid-template-columns: 6.2rem 1fr; gap: 1.4rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(4.2rem, 1fr)); gap: .75rem .6rem; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; max-height: 11rem; object-fit: contain; border-radius: 6px;
  border: 4px solid var(--soft); background: var(--line); }
figure.right img { border-color: var(--right); }
figure.wrong img { border-color: var(--wrong); }
figcaption { font-size: .75rem; line-height: 1.35; color: var(--soft); margin-top: .3rem; overflow-wrap: anywhere; }
figcaption b { display: block; color: var(--ink); }
.right figcaption b, b.right { color: var(--right); }
.wrong figcaption b, b.wrong { color: var(--wrong); }
details { margin-top: 2rem; padding: .8rem 1.15rem; font-size: .92rem; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 40rem) {
  main { padding: 1.5rem .9rem 3rem; }
  .tiles div { padding: .75rem .8rem; }
  table { font-size: .72rem; }
  thead th { font-size: .68rem; }
  th, td { padding: .4rem .22rem; }
  th:first-child { white-space: normal; }
  th:last-child, td:last-child { padding-right: .6rem; }
  th:first-child, caption, tbody tr:not(.model) th { padding-left: .6rem; }
  .gallery { grid-template-columns: repeat(auto-fill, minmax(3.3rem, 1fr)); }
  .plot { padding: .5rem; }
  .ranks { grid-template-columns: 1fr; gap: .9rem; }
  .query img { max-width: 5.5rem; }
  .query { display: flex; gap: .8rem; align-items: center; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
}
@media print { body { background: none; } article { break-inside: avoid; } }
"""
