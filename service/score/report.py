"""A report of what a job found, as one HTML file that needs nothing else."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from service.score.dataset import iterate_rows, open_output, read_manifest
from service.score.row import ABSTAINED, ERROR
from service.score.status import read_status
from service.score.thumbnails import encode_data_url, load_thumbnails

_BINS: Final = 20
_SHOWN_CLASSES: Final = 40
_CLASSES_WITH_SAMPLES: Final = 20
_SAMPLES: Final = 6
_SIDE: Final = 96
_COLUMNS: Final = ("id", "path", "status", "error_code", "label", "score")


@dataclass(slots=True)
class Findings:
    """What the rows of a job say together.

    Attributes:
        classes: Answers by label, abstained ones too.
        abstained: Of these, abstained.
        errors: Rows by error code.
        confidence: Answers by twentieths of their score.
        samples: For each label the first few images and their scores.
        failures: For each error code the first few images.
    """

    classes: Counter[str] = field(default_factory=Counter)
    abstained: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    confidence: list[int] = field(default_factory=lambda: [0] * _BINS)
    samples: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)

    def add(self, row: dict[str, Any]) -> None:
        """Counts a row."""
        if row["status"] == ERROR:
            code = row["error_code"]
            self.errors[code] += 1
            failures = self.failures.setdefault(code, [])
            if len(failures) < _SAMPLES:
                failures.append(row["path"])
            return
        label, score = row["label"], row["score"]
        self.classes[label] += 1
        self.abstained[label] += row["status"] == ABSTAINED
        self.confidence[min(_BINS - 1, int(score * _BINS))] += 1
        samples = self.samples.setdefault(label, [])
        if len(samples) < _SAMPLES:
            samples.append((row["path"], score))


def write_report(address: str, *, max_bytes: int) -> str:
    """Returns the report of an output as HTML.

    Args:
        address: Folder or URL of the output.
        max_bytes: Images of more are not shown.

    Raises:
        ScoreError: There is no job, or a part cannot be read.
    """
    folder = open_output(address)
    findings = Findings()
    for row in iterate_rows(folder, _COLUMNS):
        findings.add(row)
    shown = [label for label, _ in findings.classes.most_common(_CLASSES_WITH_SAMPLES)]
    pictures = load_thumbnails(
        (path for label in shown for path, _ in findings.samples[label]),
        _SIDE,
        column=read_manifest(folder)["options"]["column"],
        max_bytes=max_bytes,
    )
    urls = {path: encode_data_url(picture) for path, picture in pictures.items()}
    return _render(address, read_status(address), findings, shown, urls)


def _render(
    address: str,
    status: dict[str, Any],
    findings: Findings,
    shown: list[str],
    urls: dict[str, str],
) -> str:
    model = status["model"]
    answered = findings.classes.total()
    facts = [
        ("state", status["state"]),
        ("model", f"{model['name']}@{model['version']}, {model['variant']} on {model['provider']}"),
        ("bundle", model["bundle_digest"][:12]),
        ("images", f"{status['rows']:,}"),
        ("answered", f"{answered - findings.abstained.total():,}"),
        ("abstained", _of(findings.abstained.total(), answered)),
        ("failed", _of(findings.errors.total(), status["rows"])),
        ("options", ", ".join(f"{k} {v}" for k, v in status["options"].items() if v)),
        *_throughput(status["last_run"]),
    ]
    common = findings.classes.most_common(_SHOWN_CLASSES)
    rest = len(findings.classes) - len(common)
    rows = [(f"{i / _BINS:.2f}", n, 0) for i, n in enumerate(findings.confidence)]
    sections = [
        f"<table>{''.join(_row(name, value) for name, value in facts)}</table>",
        _section("Confidence", "Answers by the score of their best class.", _bars(rows)),
        _section(
            "Classes",
            "Answers by best class; the light end of a bar is abstained."
            + (f" {rest} more classes are rarer." if rest else ""),
            _bars((label, count, findings.abstained[label]) for label, count in common),
        ),
        _errors(findings),
        *(_samples(label, findings, urls) for label in shown),
    ]
    title = html.escape(f"Scores in {address}")
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style>\n<h1>{title}</h1>\n"
        + "\n".join(section for section in sections if section)
        + "\n</html>\n"
    )


def _throughput(last_run: dict[str, Any] | None) -> list[tuple[str, str]]:
    if last_run is None:
        return []
    used = last_run["utilisation"]
    return [
        ("last run", f"{last_run['done'] - last_run['resumed']:,} images in "
                     f"{last_run['seconds']:,.1f} s, {last_run['images_per_second']:,.1f}/s"),
        ("workers' time", ", ".join(f"{stage} {share:.0%}" for stage, share in used.items())),
    ]  # fmt: skip


def _of(count: int, whole: int) -> str:
    return f"{count:,} ({count / whole:.1%})" if whole else f"{count:,}"


def _row(name: str, value: str) -> str:
    return f"<tr><th>{html.escape(name)}<td>{html.escape(value)}"


def _section(title: str, text: str, content: str) -> str:
    return f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{content}"


def _bars(rows: Iterable[tuple[str, int, int]]) -> str:
    """Returns bars for (name, count, of these abstained)."""
    listed = list(rows)
    longest = max((count for _, count, _ in listed), default=0) or 1
    return (
        "<table class=bars>"
        + "".join(
            f"<tr><th>{html.escape(name)}<td><div style='width:{(count - light) / longest:.2%}'>"
            f"</div><div class=light style='width:{light / longest:.2%}'></div><td>{count:,}"
            for name, count, light in listed
        )
        + "</table>"
    )


def _errors(findings: Findings) -> str:
    if not findings.errors:
        return ""
    rows = "".join(
        f"<tr><th>{html.escape(code)}<td>{count:,}<td>"
        + "<br>".join(html.escape(path) for path in findings.failures[code])
        for code, count in findings.errors.most_common()
    )
    return _section("Errors", "The first images of each.", f"<table class=errors>{rows}</table>")


def _samples(label: str, findings: Findings, urls: dict[str, str]) -> str:
    figures = "".join(
        f"<figure title='{html.escape(path, quote=True)}'>"
        + (f"<img src='{urls[path]}' alt=''>" if path in urls else "<div class=gone>gone</div>")
        + f"<figcaption>{score:.3f}</figcaption></figure>"
        for path, score in findings.samples[label]
    )
    return f"<h3>{html.escape(label)}</h3><div class=samples>{figures}</div>"


_STYLE: Final = """
:root { color-scheme: light dark; --bar: #3567b3; --light: #a9c1e8; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem; overflow-wrap: anywhere }
h2 { margin-top: 2.2rem }
h3 { margin: 1rem 0 .3rem }
th { text-align: left; font-weight: 500; padding-right: 1.2rem; white-space: nowrap }
th { vertical-align: top }
td { overflow-wrap: anywhere; vertical-align: top }
.bars { width: 100%; border-collapse: collapse }
.bars th { width: 1%; font-variant-numeric: tabular-nums }
.bars td:nth-child(2) { width: 100% }
.bars td:last-child { text-align: right; padding-left: .8rem; white-space: nowrap }
.bars td:last-child { overflow-wrap: normal }
.bars div { display: inline-block; height: .9em; background: var(--bar); vertical-align: middle }
.bars div.light { background: var(--light) }
.errors td { padding-right: 1.2rem }
.samples { display: flex; flex-wrap: wrap; gap: .6rem } figure { margin: 0; text-align: center }
figure img, .gone { width: 96px; height: 96px; object-fit: contain; background: #8882 }
.gone { line-height: 96px } figcaption { font-size: .8rem }
"""
