"""The report's page: one HTML file without scripts or links, which opens offline, on a phone, in light and dark.

What comes from outside is escaped; the content policy allows nothing but the pictures and the style inside the file.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from reid.reports.analysis import Ranked, RankList
from reid.reports.figures import mark
from reid.reports.style import list_facts, wrap
from reid.reports.tables import (
    CENTROID_NOTE,
    COST_COLUMNS,
    PROTOCOLS,
    TABLE_NOTE,
    Results,
    column_names,
    compares_with,
    format_cells,
    format_interval,
    list_cost,
    list_protocols,
    percent,
)

THUMBNAIL_PX = 256  # longest side of a picture inside the page


@dataclass(frozen=True)
class Chart:
    """A PNG for either theme, with its name as a file, the text that stands for it, and what is said beneath it."""

    name: str
    alt: str
    said: str
    light: bytes
    dark: bytes


@dataclass(frozen=True)
class Section:
    """A heading, what its charts show, and instead of charts the reason why there are none."""

    title: str
    lead: str
    charts: list[Chart]
    absent: str = ""


def build_page(
    dataset: str,
    results: Results,
    ranks: Sequence[int],
    facts: dict[str, str],
    notes: Sequence[str],
    warnings: Sequence[str],
    rank_lists: Sequence[RankList],
    no_lists: str,
    sections: Sequence[Section],
) -> str:
    """The page's text. no_lists: why there are no rank lists, or no pictures in them; said in their place."""
    model = next(iter(results))
    cmc, *others = sections
    body = f"""{_tiles_html(model, results[model])}
{_warnings_html(warnings)}
{_notes_html(notes)}
<h2>Results</h2>
{_results_html(results, ranks)}
<p class="note">{escape(CENTROID_NOTE)}</p>
{_protocols_html(results)}
{_section_html(cmc)}
{_lists_html(rank_lists, no_lists)}
{"".join(map(_section_html, others))}
{_cost_html(model, results[model])}
{list_facts("Run", facts)}
{READING}"""
    return wrap(dataset, "evaluation", body)


READING = (
    "<details><summary>How to read these figures</summary>"
    "<p>AP is the step-wise average precision of one query; mAP is its mean over the valid queries, which can match. "
    "Gallery images of the query's identity and camera are removed, junk is dropped, distractors stay; equal "
    "scores rank in gallery order. mINP is the mean of the number of matches divided by the rank of the last.</p>"
    "<p>The 95% intervals say how far a figure moves with other queries of the same kind, by a bootstrap over queries. "
    "They hold neither the chance of another training seed nor that of another dataset.</p></details>"
)
LISTS_NOTE = (
    "A query and the best of its gallery. <b class=right>Green ✓</b> is the query's identity, <b class=wrong>red ✗</b> "
    "another."
)


def _tiles_html(model: str, protocols: dict[str, dict]) -> str:
    protocol = "image" if "image" in protocols else next(iter(protocols))
    figures = protocols[protocol]
    values = {"mAP": figures["mAP"], "Rank-1": figures["cmc"][0], "mINP": figures["mINP"]}
    ends = {name: figures.get(f"{key}_interval") for name, key in zip(values, ("mAP", "rank1", "mINP"), strict=True)}
    cells = "".join(
        f"<div><b>{percent(value)}<small>%</small></b><span>{name}{_ends_html(ends[name])}</span></div>"
        for name, value in values.items()
    )
    return (
        f'<section class="tiles" aria-label="headline">{cells}<p>{escape(model)}, {escape(protocol)} gallery: '
        f"{figures['num_valid_queries']:,} of {figures['num_queries']:,} queries have a match among "
        f"{figures['gallery_size']:,} entries. Ranges are 95% intervals.</p></section>"
    )


def _ends_html(ends: Sequence[float] | None) -> str:
    return f"<small>{format_interval(ends)}</small>" if ends else ""


def _warnings_html(warnings: Sequence[str]) -> str:
    if not warnings:
        return '<p class="calm">No warnings.</p>'
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    count = "1 warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
    return f'<section class="warnings"><h2>{count}</h2><ul>{items}</ul></section>'


def _notes_html(notes: Sequence[str]) -> str:
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _results_html(results: Results, ranks: Sequence[int]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in column_names(ranks))
    groups = []
    for i, (model, protocols) in enumerate(results.items()):
        rows = "".join(_row_html(protocol, format_cells(figures, ranks)) for protocol, figures in protocols.items())
        columns = len(column_names(ranks)) + 1
        name = f'<tr class="model"><th scope="rowgroup" colspan="{columns}"><span>{escape(model)}</span></th></tr>'
        groups.append(f"<tbody{' class=main' if i == 0 else ''}>{name}{rows}</tbody>")
    return _table_html(f'<tr><th scope="col">protocol</th>{head}</tr>', "".join(groups), TABLE_NOTE)


def _table_html(head: str, body: str, caption: str) -> str:
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table><thead>{head}</thead>{body}</table>'
        f'</div><p class="said">{caption}</p>'
    )


def _row_html(name: str, cells: Sequence[str]) -> str:
    figures = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{escape(name).replace("_", "_<wbr>")}</th>{figures}</tr>'


def _protocols_html(results: Results) -> str:
    compare = compares_with(results)
    items = [
        f"<dt>{escape(p)}</dt><dd>{escape(PROTOCOLS[p])}. <span>Compares with: {escape(compare[p])}.</span></dd>"
        for p in list_protocols(results)
        if p in PROTOCOLS and p in compare
    ]
    return f'<dl class="protocols">{"".join(items)}</dl>' if items else ""


def _cost_html(model: str, protocols: dict[str, dict]) -> str:
    rows = list_cost(protocols)
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in COST_COLUMNS)
    body = "".join(_row_html(name, cells) for name, *cells in rows)
    caption = (
        f"{escape(model)}: float32 features of all entries, with the centroids that leave a camera out, and the "
        "similarities of all queries with the entries. mAP among centroids is another question than among images."
    )
    return f"<h2>What a gallery costs</h2>{_table_html(f'<tr>{head}</tr>', f'<tbody>{body}</tbody>', caption)}"


def _section_html(section: Section) -> str:
    lead = f'<p class="lead">{escape(section.lead)}</p>' if section.lead else ""
    charts = "".join(map(_chart_html, section.charts))
    body = (
        f'<div class="plots">{charts}</div>' if charts else f'<p class="absent">Left out: {escape(section.absent)}.</p>'
    )
    return f"<h2>{escape(section.title)}</h2>{lead}{body}"


def _chart_html(chart: Chart) -> str:
    light, dark = (_data_url(content, "png") for content in (chart.light, chart.dark))
    said = f'<p class="said">{escape(chart.said)}</p>' if chart.said else ""
    return (
        f'<div><picture class="plot"><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(chart.alt)}"></picture>{said}</div>'
    )


def _lists_html(rank_lists: Sequence[RankList], no_lists: str) -> str:
    if not rank_lists and not no_lists:
        return ""
    absent = f'<p class="absent">{escape(no_lists)}</p>' if no_lists else ""
    note = f"<p class=lead>{LISTS_NOTE}</p>" if rank_lists else ""
    return f"<h2>Rank lists</h2>{note}{absent}{''.join(map(_list_html, rank_lists))}"


def _list_html(ranks: RankList) -> str:
    head = f"<h3>{escape(ranks.title)} <span>AP {percent(ranks.ap)}%</span></h3>"
    if all(entry.image is None for entry in (ranks.query, *ranks.gallery)):
        items = "".join(
            f'<li class="{_kind(entry)}"><b>{mark(entry)}</b> {escape(entry.caption)}</li>' for entry in ranks.gallery
        )
        return (
            f'<article>{head}<p class="lead">{escape(ranks.query.caption)}</p><ol class="listed">{items}</ol></article>'
        )
    gallery = "".join(
        _figure_html(entry, _kind(entry), f"{i} {mark(entry)}") for i, entry in enumerate(ranks.gallery, start=1)
    )
    query = _figure_html(ranks.query, "query", "query")
    return f'<article>{head}<div class="ranks">{query}<div class="gallery">{gallery}</div></div></article>'


def _kind(entry: Ranked) -> str:
    return "right" if entry.correct else "wrong"


def _figure_html(entry: Ranked, kind: str, head: str) -> str:
    caption = escape(entry.caption)
    shown = '<div class="blank">no image</div>'
    if entry.image is not None:
        image = Image.fromarray(entry.image)
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        shown = f'<img src="{_data_url(buffer.getvalue(), "jpeg")}" alt="{head} {caption}">'
    return f'<figure class="{kind}">{shown}<figcaption><b>{head}</b> {caption}</figcaption></figure>'


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
