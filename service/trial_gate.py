"""What a version must have shown as a shadow before it becomes the stable one."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.errors import ErrorCode, RequestError
from service.traffic_metrics import Comparison
from service.traffic_orders import Target


class Gate(BaseModel):
    """The least that is asked of a target.

    Attributes:
        target: The label or version to promote.
        min_samples: Images that it was asked as a shadow.
        min_agreement: Share of them with the same best class; failures are disagreement.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: Target = "canary"
    min_samples: Annotated[int, Field(ge=0, le=1_000_000_000)] = 200
    min_agreement: Annotated[float, Field(ge=0, le=1)] = 0.9

    def check(self, seen: Comparison) -> None:
        """Returns when the comparison passes.

        Raises:
            RequestError: `promotion_refused`, with the numbers.
        """
        faults = []
        if seen.images < self.min_samples:
            faults.append(f"{seen.images} images were compared, {self.min_samples} are needed")
        if seen.agreement is not None and seen.agreement < self.min_agreement:
            faults.append(
                f"versions {seen.serving} and {seen.shadow} agree on {seen.agreement:.2%} of "
                f"{seen.images} images, {self.min_agreement:.2%} are needed"
            )
        if faults:
            raise RequestError(ErrorCode.PROMOTION_REFUSED, "; ".join(faults))
