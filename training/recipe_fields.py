"""What a value in a recipe may be."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]

STRICT = ConfigDict(extra="forbid", strict=True)


def _one_or_more(value: Any) -> Any:
    if value is None:  # in what earlier versions wrote
        return ()
    if isinstance(value, str):
        return (value,)
    # Strict mode takes a list for a tuple from JSON, not from here.
    return tuple(value) if isinstance(value, list) else value


# One path, several or none.
Paths = Annotated[tuple[Path, ...], BeforeValidator(_one_or_more)]
