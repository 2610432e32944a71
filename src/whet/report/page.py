"""The frame of a page, and the small pieces that all pages use. Everything is inline: a page loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #fff; --ink: #1d2330; --soft: #667085; --line: #e4e2dc;
  --accent: #0f766e; --accent-soft: #d9f0ec; --good: #15803d; --good-soft: #dcf5e3; --bad: #b42318; --bad-soft: #fde7e4;
  --warn: #9a6700; --warn-soft: #fdf3d4; --tool: #f3f1ec; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --card: #1b1f26; --ink: #e6e8ec; --soft: #98a2b3; --line: #2d333d;
  --accent: #5eead4; --accent-soft: #12403b; --good: #6ee7a0; --good-soft: #143d26; --bad: #ff9c92; --bad-soft: #4a1d19;
  --warn: #f5cf6b; --warn-soft: #43350d; --tool: #232831; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.1rem; margin: 2.6rem 0 .8rem; }
h3 { font-size: .95rem; margin: 1.4rem 0 .5rem; }
p.note { color: var(--soft); font-size: .87rem; margin: .5rem 0; }
h3 .note { color: var(--soft); font-weight: 400; font-size: .87rem; margin-left: .6rem; }
code, pre, .mono { font: .86rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .6rem; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-size: .8rem; font-weight: 600; }
th.l, td.l { text-align: left; }
td small { color: var(--soft); font-size: .82rem; }
.badge { display: inline-block; padding: 0 .5rem; border-radius: 1rem; font-size: .78rem; background: var(--tool); color: var(--soft); }
.badge.good { background: var(--good-soft); color: var(--good); } .badge.bad { background: var(--bad-soft); color: var(--bad); }
.badge.warn { background: var(--warn-soft); color: var(--warn); }
.warning { background: var(--warn-soft); color: var(--warn); padding: .5rem .8rem; border-radius: .5rem; margin: .6rem 0;
  font-size: .9rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .8rem; }
figure { margin: 0; padding: .8rem .8rem .5rem; border: 1px solid var(--line); border-radius: .6rem; background: var(--card); }
figure b { font-size: .9rem; } svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 10px system-ui, sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--line); } svg .line { fill: none; stroke: var(--accent); stroke-width: 1.8; stroke-linejoin: round; }
svg .band { fill: var(--accent); opacity: .16; } svg .dot { fill: var(--accent); } svg .seed { fill: var(--soft); opacity: .55; }
svg .interval { stroke: var(--accent); stroke-width: 3; opacity: .55; }
svg .hit { fill: transparent; } svg .hit:hover { fill: var(--accent); }
details { border: 1px solid var(--line); border-radius: .6rem; background: var(--card); margin: .5rem 0; }
summary { cursor: pointer; padding: .5rem .8rem; display: flex; gap: .6rem; align-items: baseline; flex-wrap: wrap; }
summary .task { font-weight: 600; } summary .meta { color: var(--soft); font-size: .85rem; margin-left: auto; }
.turns { padding: .2rem .8rem .8rem; }
.turn { margin: .45rem 0; padding: .45rem .7rem; border-radius: .45rem; background: var(--tool); border-left: 3px solid var(--line); }
.turn.assistant { background: var(--accent-soft); border-left-color: var(--accent); }
.turn header { display: flex; gap: .6rem; font-size: .76rem; color: var(--soft); } .turn header b { color: inherit; }
.turn header span:last-child { margin-left: auto; }
.turn pre { margin: .15rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.call { font-weight: 600; } .missing { color: var(--bad); }
.legend { display: flex; gap: 1rem; font-size: .84rem; color: var(--soft); margin: .4rem 0 .8rem; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .35rem; vertical-align: -1px; }
footer { margin-top: 3rem; color: var(--soft); font-size: .84rem; }
@media print { details > .turns { display: block; } body { max-width: none; } }
"""


def page(title: str, subtitle: str, sections: Iterable[str], footer: str) -> str:
    """A whole document. `subtitle`, `sections` and `footer` are HTML; `title` is text."""
    body = "\n".join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, '
        f'initial-scale=1">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n'
        f'<p class="note">{subtitle}</p>\n{body}\n<footer>{footer}</footer>\n</body>\n</html>\n'
    )


def section(title: str, content: str) -> str:
    """A headed part of a page; nothing where there is no content."""
    return f"<section><h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """A table of HTML cells; the columns in `left` are set flush left, the others flush right."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}{' class=l' if i in left else ''}>{cell}</{tag}>" for i, cell in enumerate(cells)) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return f'<div class="scroll"><table><thead>{row([escape(h) for h in head], "th")}</thead><tbody>\n{body}\n</tbody></table></div>'


def facts(values: Mapping[str, Any]) -> str:
    """A two-column table of names and values; nested mappings under dotted names."""
    rows = [(f"<code>{escape(key)}</code>", f"<code>{escape(text)}</code>") for key, text in _flat(values)]
    return table(["", ""], rows, left=(0, 1)).replace("<thead><tr><th class=l></th><th class=l></th></tr></thead>", "") if rows else ""


def badge(text: str, kind: str = "") -> str:
    return f'<span class="badge {kind}">{escape(text)}</span>'


def warning(text: str) -> str:
    return f'<div class="warning">{escape(text)}</div>'


def number(value: Any) -> str:
    """A number as people read it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None and value != {}:
            yield prefix + key, " ".join(map(str, value)) if isinstance(value, list) else str(value)
