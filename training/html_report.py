"""One HTML file about a run or a bundle: nothing to install, nothing fetched, light and dark.

It ties together what the other commands wrote: the history with its diagnosis, the measurement of
`evaluate --out`, the pictures of `visualise --out`.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from service.bundle.manifest import Manifest
from training.errors import TrainingError

_STYLE = """
:root { color-scheme: light dark; --text: #1a1c1f; --soft: #5c6370; --page: #fff; --line: #d8dce2;
  --card: #f4f6f8; --warn: #a33; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8eb; --soft: #9aa3af; --page: #14161a;
  --line: #343a43; --card: #1e2228; --warn: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { line-height: 1.2; margin: .5rem 0; } h2 { margin: 2rem 0 .5rem; }
p.soft, figcaption { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  overflow-wrap: normal; }
td.number { text-align: right; white-space: nowrap; }
summary { padding: .3rem 0; cursor: pointer; }
figure { margin: 1rem 0; }
/* Plots are drawn on white. */
figure img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; display: block; }
.finding { background: var(--card); border-left: 4px solid var(--warn); padding: .5rem .8rem;
  margin: .6rem 0; border-radius: 4px; }
pre { background: var(--card); padding: .8rem; overflow-x: auto; border-radius: 6px;
  font-size: .8rem; overflow-wrap: normal; }
"""
_MAX_CLASSES = 200


def write_html_report(
    path: Path, *, run_dir: Path | None, manifest: Manifest | None, folders: Sequence[Path]
) -> None:
    """Writes the report.

    Args:
        path: Of the file.
        run_dir: Of the run it is about, or None.
        manifest: Of the bundle it is about, or None.
        folders: That `evaluate --out` and `visualise --out` wrote, or the `report` of a bundle.

    Raises:
        TrainingError: There is no history, a folder holds nothing to show, or the file cannot be
            written.
    """
    sections: list[str] = []
    title = "report"
    if manifest is not None:
        title = f"{manifest.name}, version {manifest.version}"
        sections.append(_bundle(manifest))
    if run_dir is not None:
        title = run_dir.resolve().name if manifest is None else title
        sections.append(_run(run_dir))
    sections += [_folder(folder) for folder in folders]
    if run_dir is not None:
        recipe = (run_dir / "recipe.json").read_text(encoding="utf-8")
        sections.append(_details("Recipe", recipe))
    elif manifest is not None:
        recipe = json.dumps(manifest.provenance.recipe, indent=2)
        sections.append(_details("Recipe", recipe))
    document = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body><main>\n"
        f"<h1>{_text(title)}</h1>\n" + "\n".join(sections) + "\n</main></body>\n</html>\n"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document, encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror}") from error


def _run(run_dir: Path) -> str:
    from training.curves import read_curves
    from training.diagnose import diagnose

    curves = read_curves(run_dir)
    found = diagnose(curves)
    parts = [
        f"<h2>Training</h2><p>{curves.epochs} epochs; top-1 {curves.train_top1[-1]:.2%} in "
        f"training, {curves.validation_top1[-1]:.2%} in validation.</p>"
    ]
    if (run_dir / "curves.png").is_file():
        parts.append(_figure(run_dir / "curves.png", "Learning curves"))
    parts.append("<h2>Diagnosis</h2>")
    parts += [
        f'<div class="finding"><strong>{_text(one.name)}</strong><br>{_text(one.evidence)}.<br>'
        f"Try: {_text(one.advice)}.</div>"
        for one in found
    ]
    if not found:
        parts.append("<p>Nothing wrong is seen in the curves.</p>")
    return "\n".join(parts)


def _bundle(manifest: Manifest) -> str:
    facts = {
        "architecture": manifest.architecture,
        "input": f"{manifest.input.height} x {manifest.input.width}",
        "classes": len(manifest.labels),
        "made": f"{manifest.created:%Y-%m-%d}",
        "licence": manifest.licence,
    }
    rows = [
        (
            one.variant,
            one.tta,
            one.images,
            f"{one.top1:.2%}",
            f"{one.top1_interval[0]:.2%} to {one.top1_interval[1]:.2%}",
            f"{one.top5:.2%}",
            f"{one.nll:.3f}",
            f"{one.ece:.4f}",
        )
        for one in manifest.metrics
    ]
    head = ("variant", "views", "images", "top-1", "95 %", "top-5", "NLL", "ECE")
    stated = "<h2>Stated in the bundle</h2>" + _table(head, rows) if rows else ""
    return _table((), facts.items()) + stated


def _folder(folder: Path) -> str:
    """Returns what a folder holds: the numbers of an evaluation, then every picture."""
    pictures = sorted(folder.glob("*.png"))
    measured = folder / "evaluation.json"
    if not pictures and not measured.is_file():
        raise TrainingError(f"{folder}: holds neither evaluation.json nor pictures")
    parts = []
    if measured.is_file():
        try:
            parts.append(_evaluation(json.loads(measured.read_text(encoding="utf-8"))))
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{measured}: no evaluation: {error}") from error
    else:
        parts.append(f"<h2>{_text(folder.resolve().name)}</h2>")
    parts += [_figure(path, path.stem.replace("_", " ")) for path in pictures]
    return "\n".join(parts)


def _evaluation(found: Mapping[str, Any]) -> str:
    low, high = found["top1_interval"]
    macro = found["macro"]
    facts = {
        "data": f"{found['dataset']} {found['split']}, {found['images']} images",
        "variant, views": f"{found['variant']}, {found['tta']}",
        "top-1": f"{found['top1']:.2%} ({low:.2%} to {high:.2%} at 95 %)",
        "top-5": f"{found['top5']:.2%}",
        "NLL, Brier": f"{found['nll']:.4f}, {found['brier']:.4f}",
        "ECE": f"{found['ece']:.4f}",
        "macro recall, precision, F1": f"{macro['recall']:.2%}, {macro['precision']:.2%}, "
        f"{macro['f1']:.2%}",
    }
    parts = ["<h2>Measured through the served path</h2>", _table((), facts.items())]
    classes = [one for one in found["classes"] if one["images"]]
    classes.sort(key=lambda one: one["recall"])
    rows = [
        (one["name"], one["images"], *(_share(one[key]) for key in ("recall", "precision", "f1")))
        for one in classes[:_MAX_CLASSES]
    ]
    head = ("class", "images", "recall", "precision", "F1")
    parts.append(_details("Classes, the hardest first", _table(head, rows), is_html=True))
    for study in found["studies"]:
        lines = [
            (line["name"], point["label"], f"{point['top1']:.1%}", f"{point['same']:.1%}")
            for line in study["lines"]
            for point in line["points"]
        ]
        table = _table(("", study["axis"], "top-1", "same answer"), lines)
        parts.append(_details(f"{study['title']}, {study['images']} images", table, is_html=True))
    return "\n".join(parts)


def _figure(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    top = f"<tr>{''.join(f'<th>{_text(one)}</th>' for one in head)}</tr>" if head else ""
    cell = _cell if head else _plain_cell
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    # What scrolls can be reached by keyboard.
    return f'<div class="wide" tabindex="0"><table>{top}{body}</table></div>'


def _cell(value: object) -> str:
    text = str(value)
    is_number = text[:1].isdigit() and text.rstrip("%").replace(".", "", 1).isdigit()
    return f"<td{' class=number' if is_number else ''}>{_text(text)}</td>"


def _plain_cell(value: object) -> str:
    return f"<td>{_text(value)}</td>"


def _details(title: str, content: str, *, is_html: bool = False) -> str:
    shown = content if is_html else f'<pre tabindex="0">{_text(content)}</pre>'
    return f"<details><summary>{_text(title)}</summary>{shown}</details>"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _text(value: object) -> str:
    return html.escape(str(value))
