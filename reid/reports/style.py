"""The look of our pages: one style sheet, light and dark, for desktops, phones and paper, and the frame of a page."""

from collections.abc import Mapping
from html import escape

STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #fff; --ink: #1f2430; --soft: #5d6675; --line: #e4e7ec;
  --accent: #0072b2; --tint: #eef5fb; --veil: rgb(0 114 178 / .067); --shade: rgb(31 36 48 / .22);
  --warn: #8a5a00; --warn-paper: #fff6e0; --right: #1a9850; --wrong: #d73027; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1217; --card: #171b22; --ink: #dfe3ea; --soft: #98a2b3;
  --line: #2c323c; --accent: #56b4e9; --tint: #1b242e; --veil: rgb(86 180 233 / .06);
  --shade: rgb(180 190 205 / .3); --warn: #f0c566; --warn-paper: #2b2413; --right: #3fbf74; --wrong: #ff6b5e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; overflow-wrap: anywhere; }
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
.tiles span small { display: block; font-size: .9em; margin: .1rem 0 0; white-space: nowrap; }
.tiles span, .tiles p { color: var(--soft); font-size: .9rem; }
.tiles p { grid-column: 1 / -1; margin: 0; }
.warnings { background: var(--warn-paper); border-left: 4px solid var(--warn); border-radius: 8px;
  padding: .9rem 1.15rem; margin-top: 1.5rem; }
.warnings h2 { font-size: 1rem; margin: 0 0 .35rem; color: var(--warn); }
.warnings ul { margin: 0; padding-left: 1.1rem; overflow-wrap: anywhere; }
/* The shade shows at the right edge until the end of a wide table, which brings the card that covers it. */
.scroll { overflow-x: auto; background: linear-gradient(to left, var(--card) 40%, transparent) right / 2.5rem 100%
  no-repeat local, linear-gradient(to left, var(--shade), transparent) right / 1.1rem 100% no-repeat, var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .95rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { caption-side: bottom; text-align: left; color: var(--soft); font-size: .85rem; padding: .6rem 1rem; }
th, td { padding: .5rem .7rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; font-weight: 500; padding-left: 1rem; position: sticky; left: 0;
  background: var(--card); }
.model th span { position: sticky; left: 1rem; }
thead th { color: var(--soft); font-weight: 500; font-size: .85rem; border-bottom: 1px solid var(--line); }
.model th { font-weight: 650; padding-top: .9rem; }
tbody + tbody .model th { border-top: 1px solid var(--line); }
tbody tr:not(.model) th { padding-left: 1.9rem; color: var(--soft); }
.main { background: var(--veil); }
.main th:first-child { background: var(--tint); }
.main td { font-weight: 600; }
.notes p { margin: .5rem 0; }
.note { border-left: 4px solid var(--accent); padding: .1rem 0 .1rem .9rem; margin: 1.25rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.25rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: .88rem; line-height: 1.75; }
.protocols { font-size: .9rem; }
.protocols dd { font: inherit; }
.plot { display: block; padding: .75rem; text-align: center; }
.plot img { width: 100%; max-width: 38rem; height: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.plots > div { min-width: 0; }
.said { color: var(--soft); font-size: .85rem; margin: .6rem .25rem 0; }
.absent { color: var(--soft); border: 1px dashed var(--line); border-radius: 12px; padding: .8rem 1.15rem;
  margin: 0 0 1rem; }
.listed { columns: 17rem 3; column-gap: 1.5rem; margin: 0; padding-left: 1.6rem; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
.listed li { padding: .1rem 0; break-inside: avoid; overflow-wrap: anywhere; }
article { padding: 1rem 1.15rem; margin-bottom: 1rem; }
.ranks { display: grid; grid-template-columns: 6.2rem 1fr; gap: 1.4rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(4.2rem, 1fr)); gap: .75rem .6rem; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; max-height: 11rem; object-fit: contain; border-radius: 6px;
  border: 4px solid var(--soft); background: var(--line); }
.blank { border: 4px solid var(--line); border-radius: 6px; padding: 1.5rem .2rem; text-align: center;
  font-size: .75rem; color: var(--soft); }
figure.right img, .right .blank { border-color: var(--right); }
figure.wrong img, .wrong .blank { border-color: var(--wrong); }
figcaption { font-size: .75rem; line-height: 1.35; color: var(--soft); margin-top: .3rem; overflow-wrap: anywhere; }
figcaption b { display: block; color: var(--ink); }
.right figcaption b, b.right, .listed .right b { color: var(--right); }
.wrong figcaption b, b.wrong, .listed .wrong b { color: var(--wrong); }
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
  .gallery { grid-template-columns: repeat(auto-fill, minmax(3.9rem, 1fr)); }
  .model th span { left: .6rem; }
  .plot { padding: .5rem; }
  .ranks { grid-template-columns: 1fr; gap: .9rem; }
  .query img { max-width: 5.5rem; }
  .query { display: flex; gap: .8rem; align-items: center; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
}
@media print { body { background: none; } article { break-inside: avoid; } }
"""


def wrap(title: str, kind: str, body: str) -> str:
    """A whole page, which loads nothing: `body` (HTML) below the title and the kind of page."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{escape(title)} · {escape(kind)}</title>
<style>{STYLE}</style>
</head>
<body><main>
<header><p class="eyebrow">Re-identification · {escape(kind)}</p><h1>{escape(title)}</h1></header>
{body}
</main></body>
</html>
"""


def list_facts(title: str, facts: Mapping[str, str]) -> str:
    """Names and values below a heading."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<h2>{title}</h2>\n<dl>{rows}</dl>"
