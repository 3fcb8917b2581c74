"""The report of `fivecrop data check`: one HTML file with thumbnails, light and dark."""

from __future__ import annotations

import base64
from html import escape

from training.data import Splits
from training.data_check import DataCheck, ImageRef, thumbnail

# More tell nothing new and make the page heavy.
_SHOWN = 60

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #4a7fb5; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
td, th { padding: .15rem .6rem .15rem 0; text-align: left; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: var(--bar); height: .7rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); padding: .5rem; overflow-wrap: anywhere; }
figure img { height: 96px; max-width: 48%; } figcaption { font-size: .8rem; }
.bad { color: #c0392b; }
"""


def render_report(report: DataCheck, splits: Splits, *, title: str) -> str:
    """Return the report as HTML that needs nothing else."""
    sections = [
        _problems(report),
        _statistics(report),
        _classes(report),
        _unreadable(report),
        _duplicates(report, splits),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{''.join(sections)}</main></body></html>\n"
    )


def _problems(report: DataCheck) -> str:
    if not report.problems:
        return "<p>No problem was found.</p>"
    return "<ul>" + "".join(f"<li>{escape(one)}</li>" for one in report.problems) + "</ul>"


def _statistics(report: DataCheck) -> str:
    rows = [(f"images, {split}", f"{count:,}") for split, count in report.images.items()]
    if report.sizes is not None and report.mean is not None and report.std is not None:
        for name, (least, median, most) in report.sizes.items():
            rows.append((f"{name}, pixels", f"{least} to {most}, median {median}"))
        for name, values in (("mean", report.mean), ("std", report.std)):
            rows.append((f"{name} of red, green, blue", ", ".join(f"{one:.4f}" for one in values)))
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{value}</td></tr>" for name, value in rows)
    return f"<h2>Statistics</h2><table>{cells}</table>"


def _classes(report: DataCheck) -> str:
    train, validation = report.classes["train"], report.classes["validation"]
    largest = max(train.values())
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{count:,}</td>'
        f'<td class="number">{validation.get(name, 0):,}</td>'
        f'<td style="width:50%"><div class="bar" style="width:{100 * count / largest:.1f}%"></div>'
        "</td></tr>"
        for name, count in train.items()
    )
    return (
        '<h2>Classes</h2><table><tr><th>class</th><th class="number">train</th>'
        f'<th class="number">validation</th><td></td></tr>{rows}</table>'
    )


def _unreadable(report: DataCheck) -> str:
    if not report.unreadable:
        return ""
    rows = "".join(
        f"<tr><td>{escape(_place(ref))}</td><td>{escape(problem)}</td></tr>"
        for ref, problem in report.unreadable[:_SHOWN]
    )
    return f"<h2>Unreadable: {len(report.unreadable)}</h2><table>{rows}</table>"


def _duplicates(report: DataCheck, splits: Splits) -> str:
    if not report.duplicates:
        return ""
    worst = sorted(
        report.duplicates, key=lambda one: (not one.is_label_different, not one.is_across_splits)
    )
    figures = []
    for pair in worst[:_SHOWN]:
        marks = [pair.kind]
        marks += ["across splits"] if pair.is_across_splits else []
        marks += ["different labels"] if pair.is_label_different else []
        pictures = "".join(_picture(ref, splits) for ref in (pair.first, pair.second))
        names = "<br>".join(escape(_place(ref)) for ref in (pair.first, pair.second))
        mark = f'<span class="bad">{", ".join(marks)}</span>' if len(marks) > 1 else marks[0]
        figures.append(f"<figure>{pictures}<figcaption>{mark}<br>{names}</figcaption></figure>")
    return (
        f"<h2>Duplicates: {len(report.duplicates)}, {len(figures)} shown</h2>"
        f'<div class="pairs">{"".join(figures)}</div>'
    )


def _place(ref: ImageRef) -> str:
    return f"{ref.split}, {ref.label}: {ref.name}"


def _picture(ref: ImageRef, splits: Splits) -> str:
    dataset = splits.train if ref.split == "train" else splits.validation
    data = thumbnail(dataset, ref.index)
    if data is None:
        return ""
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'
