"""The JSON of how a new version is tried: its types, and what they are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from service.http_answer import Answer, encode_json
from service.http_schema import Score, Trial
from service.traffic_metrics import Comparison
from service.trial import Report, TrialDescription

_EXACT = ConfigDict(extra="forbid")


@with_config(_EXACT)
class SplitVersion(TypedDict):
    """How the requests of one version ended while there was a split or a shadow."""

    version: int
    answered: int
    failed: Annotated[int, Field(description="By the server's fault, missed deadlines included.")]


@with_config(_EXACT)
class ShadowComparison(TypedDict):
    """What a shadow said of images that another version answered."""

    serving: int
    shadow: int
    images: Annotated[int, Field(description="Compared, failures included.")]
    agreed: int
    disagreed: int
    failed: int
    skipped: Annotated[int, Field(description="There was no spare time for them.")]
    agreement: Annotated[Score | None, Field(description="Share with the same best class.")]
    mean_score_difference: float | None
    mean_serving_ms: Annotated[float | None, Field(description="Decoding and inference.")]
    mean_shadow_ms: Annotated[float | None, Field(description="At the lowest priority.")]


@with_config(_EXACT)
class TrialReport(TypedDict):
    """How the trial of a model goes, counted by all workers since the server started."""

    trial: Trial
    versions: list[SplitVersion]
    comparisons: list[ShadowComparison]


def answer_report(report: Report) -> Answer:
    """Returns the answer that tells how a trial goes."""
    tally = report.tally
    document: TrialReport = {
        "trial": tell_trial(report.trial),
        "versions": [
            {"version": version, "answered": ended["ok"], "failed": ended["failed"]}
            for version, ended in sorted(tally.answers.items())
        ],
        "comparisons": [_tell_comparison(one) for _, one in sorted(tally.comparisons.items())],
    }
    return Answer(body=encode_json(document))


def _tell_comparison(one: Comparison) -> ShadowComparison:
    return {
        "serving": one.serving,
        "shadow": one.shadow,
        "images": one.images,
        "agreed": one.agreed,
        "disagreed": one.disagreed,
        "failed": one.failed,
        "skipped": one.skipped,
        "agreement": one.agreement,
        "mean_score_difference": one.score_difference,
        "mean_serving_ms": None if one.serving_s is None else one.serving_s * 1000,
        "mean_shadow_ms": None if one.shadow_s is None else one.shadow_s * 1000,
    }


def tell_trial(trial: TrialDescription) -> Trial:
    """Returns what is ordered for the traffic of a model."""
    split, past = trial.split, trial.rolled_back
    return {
        "name": trial.name,
        "split": None
        if split is None
        else {"shares": dict(split.shares), "max_error_excess": split.max_error_excess},
        "shadow": None
        if trial.shadow is None
        else {"target": trial.shadow.target, "share": trial.shadow.share},
        "rolled_back": None
        if past is None
        else {
            "at": past.at.isoformat(timespec="seconds"),
            "target": past.target,
            "version": past.version,
            "to_version": past.to_version,
            "reason": past.reason,
        },
    }
