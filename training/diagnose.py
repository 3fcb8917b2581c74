"""What a history of training says went wrong, with the evidence and what to try.

    for finding in diagnose(read_curves(Path("runs/digits-lenet5-0"))):
        print(finding.name, finding.evidence, finding.advice)

Each rule looks for what a person would see in the curves. Their limits were set on runs that had
each fault for real (`tests/training/histories`); a history may have several.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.learning_curves import Curves, Series
from training.scores import wilson_interval

FindingName = Literal[
    "wrong sign",
    "learning rate too high",
    "learning rate too low",
    "not learning",
    "unshuffled data",
    "dead ReLUs",
    "overfitting",
    "underfitting",
    "needs longer",
    "unrepresentative validation",
    "validation too small",
]

# A loss this many times that of guessing is more than bad luck at the start.
_EXPLODED = 3.0
_SPIKE = 0.15
# Falling by less than this share an epoch is standing still.
_STILL = 0.015
_SMALL_GAP, _LARGE_GAP = 0.05, 0.1
_WIDE_INTERVAL = 0.075
_MANY_DEAD = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    name: FindingName
    evidence: str
    advice: str


def diagnose(curves: Curves) -> tuple[Finding, ...]:
    """Returns what is wrong, what explains most first; nothing if the curves look as they should.

    A fault hides those that follow from it: who does not learn cannot overfit.
    """
    if curves.epochs < 2:
        return ()
    found = [one for one in (rule(curves) for rule in _BROKEN) if one is not None]
    names = {one.name for one in found}
    if not names - {"dead ReLUs"}:
        fits = [one for one in (rule(curves) for rule in _FITS) if one is not None]
        found.extend(fits[:1])
    late = [_find_easy_validation(curves), _find_small_validation(curves)]
    found.extend(one for one in late if one is not None)
    return tuple(found)


def _find_wrong_sign(curves: Curves) -> Finding | None:
    loss = curves.train_loss
    if curves.epochs < 3 or curves.has_learnt:
        return None
    rises = float((np.diff(loss) > 0).mean())
    if rises < 0.8 or not loss[-1] > 1.5 * max(loss[0], curves.guessing):
        return None
    return Finding(
        name="wrong sign",
        evidence=f"the training loss rises from the first epoch to the last, {loss[0]:.3g} to "
        f"{loss[-1]:.3g}; guessing is {curves.guessing:.3g}",
        advice="the step goes up the gradient: look for a missing minus in the loss or the update. "
        "If the sign is right, the learning rate is far too high",
    )


def _find_high_rate(curves: Curves) -> Finding | None:
    if _find_wrong_sign(curves) is not None:
        return None
    advice = "divide the learning rate by 3 to 10, warm it up, or clip the gradient"
    parts = curves.train_loss if curves.loss_parts is None else curves.loss_parts.ravel()
    if not np.isfinite(parts).all():
        evidence = "the training loss stopped being a number"
    elif parts.max() > _EXPLODED * max(curves.guessing, parts[0] / 2):
        evidence = (
            f"the training loss jumps to {parts.max():.3g}, {parts.max() / curves.guessing:.1f} "
            f"times that of guessing"
        )
    else:
        loss = curves.train_loss
        spikes = np.flatnonzero(np.diff(loss) > _SPIKE * loss[:-1]) + 2
        is_noise = loss[spikes - 1].max(initial=0) < 0.05 * curves.guessing
        if len(spikes) < max(2, curves.epochs // 8) or is_noise or _looks_sorted(curves):
            return None
        shown = ", ".join(map(str, spikes[:5].tolist()))
        evidence = f"the training loss jumps up again and again, in epochs {shown}"
    return Finding(name="learning rate too high", evidence=evidence, advice=advice)


def _find_unshuffled(curves: Curves) -> Finding | None:
    if not _looks_sorted(curves):
        return None
    return Finding(
        name="unshuffled data",
        evidence="the training loss goes up and down at the same places of every epoch "
        f"(correlation {_periodicity(curves)[0]:.2f} over {curves.epochs} epochs)",
        advice="show the images in a new random order each epoch; they seem to lie sorted by class",
    )


def _looks_sorted(curves: Curves) -> bool:
    correlation, sure = _periodicity(curves)
    return correlation > 0.2 and sure > 3


def _periodicity(curves: Curves) -> tuple[float, float]:
    """Returns how alike the epochs' courses are, -1 to 1, and that in standard errors."""
    if curves.loss_parts is None or curves.epochs < 4 or curves.loss_parts.shape[1] < 8:
        return 0.0, 0.0
    if not np.isfinite(curves.loss_parts).all():
        return 0.0, 0.0
    logs = np.log(np.maximum(curves.loss_parts, 1e-9))
    place = np.arange(logs.shape[1])
    # Every epoch learns, so its trend is no sign of anything; a bend of it hardly either.
    rest = np.stack([row - np.polyval(np.polyfit(place, row, 2), place) for row in logs])
    if rest.std() < 0.1:
        return 0.0, 0.0
    others = [np.delete(rest, index, axis=0).mean(axis=0) for index in range(len(rest))]
    alike = np.array(
        [np.corrcoef(one, other)[0, 1] for one, other in zip(rest, others, strict=True)]
    )
    error = alike.std(ddof=1) / math.sqrt(len(alike))
    return float(alike.mean()), float(alike.mean() / max(error, 1e-9))


def _find_low_rate(curves: Curves) -> Finding | None:
    loss, middle = curves.train_loss, curves.epochs // 2
    if curves.epochs < 5 or not loss[-1] > 0.5 * loss[0]:
        return None
    falls = float((np.diff(loss) < 0).mean())
    early, late = loss[0] - loss[middle], loss[middle] - loss[-1]
    # A straight line: who learns fast at first and then stands still has another trouble.
    if falls < 0.9 or late < 0.5 * early or loss[0] - loss[-1] < 0.002 * loss[0]:
        return None
    return Finding(
        name="learning rate too low",
        evidence=f"the training loss falls in a straight line, {loss[0]:.3g} to {loss[-1]:.3g} "
        f"in {curves.epochs} epochs",
        advice="multiply the learning rate by 3 to 10, until it no longer helps",
    )


def _find_no_learning(curves: Curves) -> Finding | None:
    explained = (_find_wrong_sign, _find_high_rate, _find_low_rate)
    if curves.has_learnt or any(rule(curves) is not None for rule in explained):
        return None
    loss = curves.validation_loss
    moved = float(np.ptp(loss[curves.first.stop - 1 :]) / loss[-1]) if loss[-1] else 0.0
    is_still = np.ptp(loss) <= 1e-6 * abs(loss[-1])
    evidence = f"the loss stays near that of guessing ({curves.guessing:.3g}): {loss[-1]:.3g}" + (
        ", and validation gives the very same every epoch"
        if is_still
        else f", moving by {moved:.1%}"
    )
    return Finding(
        name="not learning",
        evidence=evidence,
        advice="the weights that are shown are not those that are trained: is the optimiser built "
        "on this network's parameters, are they frozen, is the step taken?"
        if is_still
        else "no gradient gets through, or labels and images do not belong together: look at a "
        "batch with its labels, and try to learn ten images by heart",
    )


def _find_dead_relus(curves: Curves) -> Finding | None:
    if curves.dead_relus is None or not curves.dead_relus[-1] > _MANY_DEAD:
        return None
    return Finding(
        name="dead ReLUs",
        evidence=f"{curves.dead_relus[-1]:.0%} of the ReLUs fire for no validation image of a "
        f"batch, {curves.dead_relus[0]:.0%} after the first epoch",
        advice="initialise as He with biases of 0, lower the learning rate or warm it up, "
        "normalise batches, or use a leaky ReLU",
    )


def _find_overfitting(curves: Curves) -> Finding | None:
    loss = curves.validation_loss
    best = int(loss.argmin())
    around, end = loss[max(0, best - 2) : best + 3], loss[curves.last]
    if best >= curves.epochs - len(end):
        return None
    noise = math.sqrt(around.var() / len(around) + end.var() / len(end))
    rise = float(end.mean() - around.mean())
    is_real = rise > max(0.1 * around.mean(), 3 * noise)
    is_learnt_by_heart = curves.train_loss[-1] < 0.8 * curves.train_loss[best]
    if not (is_real and is_learnt_by_heart and curves.gap[curves.last].mean() > _SMALL_GAP):
        return None
    return Finding(
        name="overfitting",
        evidence=f"validation loss is least in epoch {best + 1} ({loss[best]:.3g}) and rises to "
        f"{end.mean():.3g}, while training loss falls from {curves.train_loss[best]:.3g} to "
        f"{curves.train_loss[-1]:.3g}; accuracy {curves.train_top1[-1]:.1%} in training, "
        f"{curves.validation_top1[-1]:.1%} in validation",
        advice="more images or augmentation, weight decay, dropout or label smoothing, a smaller "
        f"network, or stop at epoch {best + 1}",
    )


def _find_unlike_validation(curves: Curves) -> Finding | None:
    early, late = float(curves.gap[curves.first].mean()), float(curves.gap[curves.last].mean())
    if late < _LARGE_GAP or early < 0.6 * late:
        return None
    return Finding(
        name="unrepresentative validation",
        evidence=f"validation is worse by {100 * early:.0f} points from the first epochs on "
        f"({100 * late:.0f} at the end), before anything could be learnt by heart",
        advice="see whether its images come from the same source: keep a random part of the "
        "training images aside, and if that is answered well, the two sets differ",
    )


def _find_easy_validation(curves: Curves) -> Finding | None:
    if curves.is_training_plain is False or not curves.has_learnt:
        return None
    half = slice(curves.epochs // 2, None)
    margin = 0.03
    if curves.validation_images is not None:
        low, high = wilson_interval(
            round(curves.validation_top1[-1] * curves.validation_images), curves.validation_images
        )
        margin = max(margin, high - low)
    if not (-curves.gap[half] > margin).all():
        return None
    return Finding(
        name="unrepresentative validation",
        evidence=f"validation is better than training all along, by {-100 * curves.gap[-1]:.0f} "
        "points at the end",
        advice="measure the training images without augmentation and dropout first; if they stay "
        "worse, validation is easier than what was trained on, or holds copies of it",
    )


def _find_small_validation(curves: Curves) -> Finding | None:
    if curves.validation_images is None:
        return None
    top1 = float(curves.validation_top1[-1])
    hits = round(top1 * curves.validation_images)
    low, high = wilson_interval(hits, curves.validation_images)
    if (high - low) / 2 < _WIDE_INTERVAL:
        return None
    return Finding(
        name="validation too small",
        evidence=f"{hits} right of {curves.validation_images} images may mean {low:.1%} to "
        f"{high:.1%} (95 %)",
        advice="keep more images aside, or cross-validate; do not choose between runs by this",
    )


def _find_need_for_more(curves: Curves) -> Finding | None:
    train, validation = (_fall(one[curves.last]) for one in _losses(curves))
    if min(train, validation) < _STILL:
        return None
    return Finding(
        name="needs longer",
        evidence=f"at the end the losses still fall, by {train:.1%} an epoch in training and "
        f"{validation:.1%} in validation",
        advice="train for more epochs, with the schedule of the learning rate stretched to them",
    )


def _find_underfitting(curves: Curves) -> Finding | None:
    is_still = _fall(curves.train_loss[curves.last]) < _STILL
    train, gap = float(curves.train_top1[-1]), float(curves.gap[curves.last].mean())
    if not is_still or train > 0.9 or gap > _SMALL_GAP or not curves.has_learnt:
        return None
    return Finding(
        name="underfitting",
        evidence=f"training stands still at {train:.1%} and a loss of "
        f"{curves.train_loss[-1]:.3g}, validation is as good ({curves.validation_top1[-1]:.1%})",
        advice="a larger or better suited network, less augmentation and regularisation, or "
        "another learning rate",
    )


def _losses(curves: Curves) -> tuple[Series, Series]:
    return curves.train_loss, curves.validation_loss


def _fall(loss: Series) -> float:
    """Returns the mean share that a loss falls by from one epoch to the next."""
    if not (np.isfinite(loss).all() and loss[0] > 0 and loss[-1] > 0):
        return 0.0
    return float(1 - (loss[-1] / loss[0]) ** (1 / (len(loss) - 1)))


_Rule = Callable[[Curves], Finding | None]
# What makes every other question idle ...
_BROKEN: tuple[_Rule, ...] = (
    _find_wrong_sign,
    _find_high_rate,
    _find_unshuffled,
    _find_low_rate,
    _find_dead_relus,
    _find_no_learning,
)
# ... and how well what was learnt fits, of which only the first that holds is told.
_FITS: tuple[_Rule, ...] = (
    _find_unlike_validation,
    _find_overfitting,
    _find_underfitting,
    _find_need_for_more,
)
