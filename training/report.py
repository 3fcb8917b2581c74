"""What a person reads of a bundle: `MODEL_CARD.md` and the plots in `report/`."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.bundle.manifest import Conformal, Manifest, Metrics
from service.bundle.repository import CARD_FILE
from training.evaluate import Evaluation
from training.plots import MAX_PLOTTED_CLASSES, plot_confusion, plot_reliability
from training.studies import Study

_LISTED_LABELS = 20
_WORST_CLASSES = 10
_SHOWN_COVERAGES = (0.8, 0.9, 0.95, 0.99)


def write_report(
    folder: Path,
    manifest: Manifest,
    evaluation: Evaluation | None,
    *,
    notes: Sequence[str] = (),
    curves: Path | None = None,
) -> None:
    """Writes the model card and the plots below `folder`.

    Args:
        folder: The bundle's.
        manifest: What the card states; its list of files is not read.
        evaluation: Of the fp32 variant without test-time augmentation, if there were labels.
        notes: Sentences that open the card.
        curves: A PNG of learning curves to copy.
    """
    report = folder / "report"
    if evaluation is not None or curves is not None:
        report.mkdir()
    plots = {}
    if evaluation is not None:
        plot_reliability(evaluation, report / "reliability.png")
        plots["Confidence and accuracy"] = "report/reliability.png"
        if len(evaluation.classes) <= MAX_PLOTTED_CLASSES:
            plot_confusion(evaluation, report / "confusion.png")
            plots["Confusion matrix"] = "report/confusion.png"
    if curves is not None:
        shutil.copyfile(curves, report / "learning_curves.png")
        plots["Learning curves"] = "report/learning_curves.png"
    sections = [
        _head(manifest, notes),
        _accuracy(manifest),
        _calibration(manifest),
        _hardest_classes(evaluation),
        _proof(manifest),
        _provenance(manifest),
        "\n\n".join(f"## {title}\n\n![{title}]({file})" for title, file in plots.items()),
    ]
    card = "\n\n".join(section for section in sections if section)
    (folder / CARD_FILE).write_text(card + "\n", encoding="utf-8")


def describe_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """Returns an evaluation as JSON values: every number of it."""
    document = dataclasses.asdict(evaluation)
    document["matrix"] = evaluation.matrix.tolist()
    return document


def format_evaluation(evaluation: Evaluation) -> str:
    """Returns an evaluation as a few lines for a terminal."""
    (low1, high1), (low5, high5) = evaluation.top1_interval, evaluation.top5_interval
    macro = evaluation.macro
    return "\n".join(
        [
            f"data    {evaluation.dataset} {evaluation.split}, {evaluation.images} images, "
            f"views {evaluation.tta}",
            f"top-1   {evaluation.top1:.2%}   (95 %: {low1:.2%} to {high1:.2%}), "
            f"error {1 - evaluation.top1:.2%}",
            f"top-5   {evaluation.top5:.2%}   (95 %: {low5:.2%} to {high5:.2%}), "
            f"error {1 - evaluation.top5:.2%}",
            f"NLL     {evaluation.nll:.4f}",
            f"Brier   {evaluation.brier:.4f}",
            f"ECE     {evaluation.ece:.4f}",
            f"macro   recall {macro.recall:.2%}, precision {macro.precision:.2%}, "
            f"F1 {macro.f1:.2%}",
        ]
    )


def format_study(study: Study) -> str:
    """Returns a study as a table for a terminal."""
    rows = [f"{study.title}, {study.images} images"]
    for line in study.lines:
        rows += [
            f"  {line.name:<10} {point.label:>16}   top-1 {point.top1:>7.2%}   "
            f"same answer {point.same:.1%}"
            for point in line.points
        ]
    return "\n".join(rows)


def _head(manifest: Manifest, notes: Sequence[str]) -> str:
    resize, crop = manifest.preprocess.resize, manifest.preprocess.crop
    shown = ", ".join(label.name for label in manifest.labels[:_LISTED_LABELS])
    more = len(manifest.labels) - _LISTED_LABELS
    lines = [
        f"# {manifest.name}, version {manifest.version}",
        *notes,
        "| | |\n|---|---|\n"
        f"| Architecture | `{manifest.architecture}` |\n"
        f"| Licence | {manifest.licence} |\n"
        f"| Made | {manifest.created:%Y-%m-%d} |\n"
        f"| Input | {crop.height} x {crop.width} RGB |\n"
        f"| Preprocessing | {resize.policy.replace('_', ' ')} {resize.size}, "
        f"{resize.interpolation}; centre crop |\n"
        f"| Mean, std (0..1) | {_numbers(manifest.normalisation.mean)}; "
        f"{_numbers(manifest.normalisation.std)} |\n"
        f"| Classes | {len(manifest.labels)}: {shown}{f', and {more} more' if more > 0 else ''} |\n"
        f"| Outputs | {', '.join(f'{one.name} {list(one.shape)}' for one in manifest.outputs)} |",
    ]
    return "\n\n".join(lines)


def _accuracy(manifest: Manifest) -> str:
    if not manifest.metrics:
        return "## Accuracy\n\nNot measured: there were no labelled images."
    rows = "\n".join(map(_metrics_row, manifest.metrics))
    return (
        "## Accuracy\n\nMeasured through the served path (this bundle, its preprocessing, "
        "ONNX Runtime). Intervals are Wilson's at 95 %.\n\n"
        "| variant | data | images | views | top-1 | 95 % | top-5 | NLL | ECE |\n"
        "|---|---|---|---|---|---|---|---|---|\n" + rows
    )


def _metrics_row(one: Metrics) -> str:
    low, high = one.top1_interval
    return (
        f"| {one.variant} | {one.dataset} {one.split} | {one.images} | {one.tta} | {one.top1:.2%} "
        f"| {low:.2%} to {high:.2%} | {one.top5:.2%} | {one.nll:.4f} | {one.ece:.4f} |"
    )


def _calibration(manifest: Manifest) -> str:
    lines = []
    if (fitted := manifest.calibration) is not None:
        lines.append(
            f"Temperature {fitted.temperature:.4f}, fitted on the images above: expected "
            f"calibration error {fitted.ece_before:.4f} before, {fitted.ece_after:.4f} after."
        )
    else:
        lines.append("The probabilities are those of the weights; no temperature was fitted.")
    reference = manifest.decision.reference
    if manifest.decision.abstain_below is not None and reference is not None:
        lines.append(
            f"Answers below {manifest.decision.abstain_below:.4f} should not be acted on: above "
            f"it, {reference.coverage:.1%} of the images are answered, "
            f"{reference.accuracy:.2%} rightly."
        )
    if (rolled := manifest.decision.roll_up) is not None:
        lines.append(
            f"Of the others, {rolled.coverage:.1%} are answered with a group of classes, "
            f"{rolled.accuracy:.2%} rightly."
        )
    if manifest.decision.conformal:
        lines.append(_label_sets(manifest.decision.conformal))
    return "## Calibration\n\n" + "\n\n".join(lines)


def _label_sets(calibrated: Sequence[Conformal]) -> str:
    rows = "\n".join(
        f"| {one.tta} | {level.coverage:.1%} | {level.measured_coverage:.2%} "
        f"| {level.mean_labels:.2f} |"
        for one in calibrated
        for level in one.levels
        if level.coverage in _SHOWN_COVERAGES
    )
    return (
        "Sets of labels that hold the right one (`coverage=0.9`), measured on images that did not "
        "choose them.\n\n| views | coverage | measured | labels in a set |\n|---|---|---|---|\n"
        + rows
    )


def _hardest_classes(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return ""
    seen = [one for one in evaluation.classes if one.recall is not None]
    worst = sorted(seen, key=lambda one: one.recall or 0.0)[:_WORST_CLASSES]
    rows = "\n".join(
        f"| {one.name} | {one.images} | {one.recall or 0.0:.1%} | "
        f"{'-' if one.precision is None else f'{one.precision:.1%}'} |"
        for one in worst
    )
    return (
        f"## The {len(worst)} hardest classes\n\n"
        "| class | images | recall | precision |\n|---|---|---|---|\n" + rows
    )


def _proof(manifest: Manifest) -> str:
    rows = "\n".join(
        f"| `{one.file}` | {one.precision} | {one.bytes / 1e6:.2f} MB | {one.opset} | "
        f"{one.parity.max_abs:.1e} | {one.parity.top1_agreement:.2%} of {one.parity.images} |"
        for one in manifest.variants
    )
    return (
        "## Files and parity\n\nLargest difference of a probability from the network before its "
        "export, and agreement on the best class, on real images.\n\n"
        "| file | precision | size | opset | difference | top-1 agreement |\n"
        "|---|---|---|---|---|---|\n" + rows
    )


def _provenance(manifest: Manifest) -> str:
    made = manifest.provenance
    libraries = ", ".join(f"{name} {version}" for name, version in made.libraries.items())
    return (
        f"## Provenance\n\n* Code revision: `{made.code_revision}`\n* Data: "
        f"`{made.dataset_fingerprint}`\n* Seed: {made.seed}\n* Hardware: {made.hardware}\n"
        f"* Libraries: {libraries}\n\nThe recipe is in `bundle.json`."
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
