"""The JSON of HTTP answers as types: mypy holds the code to them, OpenAPI publishes them."""

from __future__ import annotations

from typing import (
    Annotated,
    Literal,
    NotRequired,  # pydantic needs this one before Python 3.12
)

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from service.errors import ErrorCode

_EXACT = ConfigDict(extra="forbid")

Score = Annotated[float, Field(ge=0, le=1)]
Status = Annotated[int, Field(ge=100, le=599, description="The HTTP status of this item alone.")]
Item = Annotated[int, Field(ge=0, description="Position in the request.")]


@with_config(_EXACT)
class Prediction(TypedDict):
    """One class and how probable it is."""

    label: str
    index: Annotated[int, Field(ge=0, description="Class id.")]
    score: Annotated[Score, Field(description="Calibrated probability.")]


@with_config(_EXACT)
class ImageInfo(TypedDict):
    """The image file: its pixels before EXIF turns them upright, and what its bytes are."""

    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    format: Annotated[str, Field(description="What the bytes are: jpeg, png, webp, ...")]


class Outcome(TypedDict):
    """What the model says of one image."""

    model: str
    version: int
    predictions: Annotated[list[Prediction], Field(description="Best first.")]
    abstained: Annotated[
        bool, Field(description="The best score is under what the model can be trusted at.")
    ]
    image: ImageInfo


@with_config(_EXACT)
class Single(Outcome):
    """The answer for one image."""

    request_id: str


@with_config(_EXACT)
class ItemOutcome(Outcome):
    """One classified image of several."""

    item: Item
    status: Status


@with_config(_EXACT)
class ItemError(TypedDict):
    """Why one image was not classified."""

    code: ErrorCode
    detail: str


@with_config(_EXACT)
class ItemFailure(TypedDict):
    """One image of several that was not classified; the others are not affected."""

    item: Item
    status: Status
    error: ItemError


@with_config(_EXACT)
class Several(TypedDict):
    """The answer for a form or a list: one result an image, in their order."""

    request_id: str
    results: list[ItemOutcome | ItemFailure]


@with_config(_EXACT)
class Problem(TypedDict):
    """Why a request failed (RFC 9457); match on `code`, which never changes."""

    type: str
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    code: ErrorCode
    detail: str
    request_id: str
    error: NotRequired[Annotated[str, Field(description="The detail, for Triton's clients.")]]
    message: NotRequired[Annotated[str, Field(description="The detail, for TorchServe's.")]]


@with_config(_EXACT)
class Model(TypedDict):
    """One served model version."""

    name: str
    version: int
    state: str
    is_default: Annotated[bool, Field(description="Serves requests that name no model.")]
    provider: Annotated[str, Field(description="Where it runs: cpu, cuda or openvino.")]
    variant: Annotated[str, Field(description="Precision that runs: fp32, fp16 or int8.")]
    classes: int
    input_height: int
    input_width: int
    digest: Annotated[str, Field(description="SHA-256 that identifies the bundle.")]
    top1: Annotated[
        float | None, Field(description="Accuracy measured through this same path at export.")
    ]


@with_config(_EXACT)
class Models(TypedDict):
    """The models that are served."""

    models: list[Model]


@with_config(_EXACT)
class Labels(TypedDict):
    """The labels of a model, by class id."""

    model: str
    version: int
    labels: list[str]


@with_config(_EXACT)
class Alive(TypedDict):
    """The process answers."""

    status: Literal["alive"]


@with_config(_EXACT)
class Ready(TypedDict):
    """Every model has proved itself and requests are accepted."""

    status: Literal["ready"]
