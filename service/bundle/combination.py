"""Combinations: models made of other bundles, with a manifest and no weights of their own.

`exported_models/NAME/VERSION/combination.json`. An ensemble averages what its members say; a
cascade asks its stages one after the other until one is sure. Each names its bundles by version and
digest, so what was validated together is what answers together.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePath
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from service.bundle.manifest import (
    NAME_PATTERN,
    Decision,
    Positive,
    Scale,
    Sha256,
    Strict,
    TtaPolicy,
    Unit,
)
from service.bundle.repository import list_versions, publishing
from service.errors import BundleError, tell_invalid

COMBINATION_FILE = "combination.json"

Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}$")]
Reference = Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}@[1-9][0-9]{{0,17}}$")]


class Member(Strict):
    """A bundle, NAME@VERSION, with the sha256 of its `bundle.json` and the views it is shown."""

    model: Reference
    digest: Sha256
    tta: TtaPolicy = "none"


class WeightedMember(Member):
    """A member of an ensemble; weights are relative to their sum."""

    weight: Scale = 1.0


class Stage(Member):
    """A stage of a cascade; the next one is asked when its best score is under the threshold."""

    escalate_below: Unit | None = None


class Measured(Strict):
    """What the combination gave on images that chose nothing about it.

    `escalated` is the share of images that went on to a later stage, `cost_share` the CPU time an
    image as a share of what always asking the last stage would take.
    """

    dataset: str
    split: str
    images: Positive
    top1: Unit
    top1_interval: tuple[Unit, Unit]
    escalated: Unit | None = None
    cost_share: Scale | None = None


class _Combination(Strict):
    spec_version: Literal[1] = 1
    name: Name
    version: Positive
    created: datetime
    measured: Measured | None = None

    @property
    def reference(self) -> str:
        """NAME@VERSION, as users write it."""
        return f"{self.name}@{self.version}"


class Ensemble(_Combination):
    """Answers with the weighted mean of its members' probabilities."""

    kind: Literal["ensemble"] = "ensemble"
    members: Annotated[tuple[WeightedMember, ...], Field(min_length=2, max_length=16)]
    decision: Decision = Decision()

    @model_validator(mode="after")
    def _decides_by_one_threshold(self) -> Self:
        if self.decision != Decision(
            abstain_below=self.decision.abstain_below, reference=self.decision.reference
        ):
            raise ValueError("an ensemble decides by abstain_below alone")
        return self


class Cascade(_Combination):
    """Answers with the first of its stages that is sure, or with the last."""

    kind: Literal["cascade"] = "cascade"
    members: Annotated[tuple[Stage, ...], Field(min_length=2, max_length=16)]

    @model_validator(mode="after")
    def _ends_at_the_last_stage(self) -> Self:
        *earlier, last = self.members
        if any(stage.escalate_below is None for stage in earlier):
            raise ValueError("each stage but the last has a threshold")
        if last.escalate_below is not None:
            raise ValueError("the last stage has nobody to ask")
        return self


Combination = Ensemble | Cascade
_PARSER: TypeAdapter[Combination] = TypeAdapter(
    Annotated[Ensemble | Cascade, Field(discriminator="kind")]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCombination:
    """A combination of a repository; `digest` is the sha256 of its `combination.json`."""

    manifest: Combination
    digest: str


def is_sure(score: float, stage: Stage) -> bool:
    """Whether a stage whose best class has this probability answers without the next one."""
    return stage.escalate_below is None or score >= stage.escalate_below


def read_combination(folder: Path) -> FoundCombination:
    """Returns the combination in a folder NAME/VERSION.

    Raises:
        BundleError: There is none, it does not parse, or it is not where its name says.
    """
    file = folder / COMBINATION_FILE
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}") from error
    return parse_combination(content, folder)


def parse_combination(content: bytes, folder: PurePath) -> FoundCombination:
    """Returns the combination of a file that was read from a folder NAME/VERSION.

    Raises:
        BundleError: It does not parse, or it is not where its name says.
    """
    try:
        manifest = _PARSER.validate_json(content)
    except ValidationError as error:
        raise BundleError(tell_invalid(folder / COMBINATION_FILE, error)) from error
    if (folder.parent.name, folder.name) != (manifest.name, str(manifest.version)):
        raise BundleError(f"{folder} holds {manifest.reference}; folders are NAME/VERSION")
    return FoundCombination(manifest=manifest, digest=hashlib.sha256(content).hexdigest())


def publish_combination(repository: Path, combination: Combination) -> Path:
    """Publishes a combination as the next version of its name; returns its folder.

    Raises:
        BundleError: Bundles have the name already, or it is not a name.
    """
    if combination.name in list_versions(repository):
        raise BundleError(f"{combination.name}: bundles have the name already")
    with publishing(repository, combination.name, check=read_combination) as (folder, version):
        numbered = combination.model_copy(update={"version": version})
        text = numbered.model_dump_json(indent=2, exclude_none=True) + "\n"
        (folder / COMBINATION_FILE).write_text(text, encoding="utf-8")
    return repository / combination.name / str(version)
