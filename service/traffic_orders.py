"""What becomes of requests that name a model alone, by order: a split, a shadow, a roll-back.

A target is a version label or a version. Their shares are of the requests that name the model and
no version of it; the rest is answered by what the name means, its stable or else newest version.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

# A canary may fail that much more often than the stable version before it is rolled back.
MAX_ERROR_EXCESS: Final = 0.02

Target = Annotated[str, Field(pattern=r"^([a-z][a-z0-9._-]{0,31}|[1-9][0-9]{0,17})$")]
Share = Annotated[float, Field(gt=0, le=1)]


class Split(BaseModel):
    """Which share of the requests goes to which target.

    Attributes:
        shares: By target; together at most 1.
        max_error_excess: Difference between a target's error rate and that of the stable version
            beyond which the target is rolled back; None lets it fail.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shares: Annotated[dict[Target, Share], Field(min_length=1, max_length=8)]
    max_error_excess: Annotated[float | None, Field(ge=0, lt=1)] = MAX_ERROR_EXCESS

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        if math.fsum(self.shares.values()) > 1 + 1e-9:
            raise ValueError("the shares are more than 1 together")
        return self


class Shadow(BaseModel):
    """Which share of the requests a target is also asked, its answers compared and thrown away."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: Target
    share: Share = 1.0


class RolledBack(BaseModel):
    """That a target failed too often and was taken out of the split, and when.

    Attributes:
        at: When.
        target: What the split had named.
        version: What that meant.
        to_version: What a label means instead.
        reason: The numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: AwareDatetime
    target: Target
    version: Annotated[int, Field(ge=1)]
    to_version: Annotated[int, Field(ge=1)]
    reason: str


def list_versions(split: Split | None, shadow: Shadow | None) -> set[int]:
    """Returns the versions that are targets by their number."""
    targets = [*(split.shares if split else ()), *([shadow.target] if shadow else ())]
    return {int(target) for target in targets if target.isdecimal()}
