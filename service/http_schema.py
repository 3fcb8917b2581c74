"""The JSON of HTTP answers as types: mypy holds the code to them, OpenAPI publishes them."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

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


@with_config(_EXACT)
class Decision(TypedDict):
    """The threshold of an answer, and what abstaining below it gave on validation images."""

    abstain_below: Score
    coverage: Annotated[Score | None, Field(description="Share of images that were answered.")]
    accuracy: Annotated[Score | None, Field(description="Share of those that were right.")]


@with_config(_EXACT)
class Reference(TypedDict):
    """What a rule gave on validation images."""

    coverage: Annotated[Score, Field(description="Share of images that were answered.")]
    accuracy: Annotated[Score, Field(description="Share of those that were right.")]


@with_config(_EXACT)
class Group(TypedDict):
    """Classes that the manifest puts under one name."""

    label: str
    score: Annotated[Score, Field(description="Sum of the probabilities of its classes.")]


@with_config(_EXACT)
class LabelSet(TypedDict):
    """The fewest labels that hold the right one with a probability of `coverage`."""

    coverage: Annotated[Score, Field(description="The calibrated level: as asked for or above.")]
    predictions: Annotated[list[Prediction], Field(description="Best first.")]


@with_config(_EXACT)
class Member(TypedDict):
    """What one member of an ensemble or cascade said."""

    model: str
    version: int
    tta: str
    label: Annotated[str, Field(description="Its best class.")]
    score: Score


class Outcome(TypedDict):
    """What the model says of one image."""

    model: str
    version: int
    predictions: Annotated[list[Prediction], Field(description="Best first.")]
    abstained: Annotated[
        bool, Field(description="The best score is under what the model can be trusted at.")
    ]
    decision: Annotated[
        Decision | None, Field(description="The threshold that was applied, if there is one.")
    ]
    group: NotRequired[
        Annotated[Group, Field(description="What can be said instead, when it abstained.")]
    ]
    label_set: NotRequired[Annotated[LabelSet, Field(description="When asked for by coverage.")]]
    members: NotRequired[
        Annotated[
            list[Member], Field(description="Which members ran, of an ensemble or a cascade.")
        ]
    ]
    embedding: NotRequired[
        Annotated[list[float], Field(description="When asked for: what the classifier reads.")]
    ]
    views: NotRequired[
        Annotated[
            list[str],
            Field(description="When asked for: a PNG in base64 of each view that the network saw."),
        ]
    ]
    image: ImageInfo
    batch_views: Annotated[int, Field(ge=1, description="Views in the batch that it ran in.")]


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
class Evidence(TypedDict):
    """How much each cell of the view speaks for the class; below 0, against it."""

    height: Annotated[int, Field(ge=1, description="Rows of cells.")]
    width: Annotated[int, Field(ge=1, description="Cells in a row.")]
    values: Annotated[list[list[float]], Field(description="By row, from the top left.")]


@with_config(_EXACT)
class Explanation(TypedDict):
    """Where the evidence for a class lies, in the centre crop that the model saw."""

    request_id: str
    model: str
    version: int
    method: Annotated[
        str,
        Field(
            description="`cam`: parts of the logit, relative to the mean of the classes. "
            "`occlusion`: fall of the log-probability when the place is covered."
        ),
    ]
    prediction: Annotated[Prediction, Field(description="The class that is explained.")]
    evidence: Evidence
    member: NotRequired[
        Annotated[
            str,
            Field(description="Of an ensemble or cascade: whose evidence it is, NAME@VERSION."),
        ]
    ]
    image: ImageInfo


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
class LabelSetLevel(TypedDict):
    """A coverage that can be asked for, and what it gave on images that did not choose it."""

    coverage: Score
    measured_coverage: Score
    mean_labels: Annotated[float, Field(ge=1, description="Labels in a set, on average.")]


@with_config(_EXACT)
class LabelSets(TypedDict):
    """The label sets of one test-time augmentation policy."""

    tta: str
    levels: list[LabelSetLevel]


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
    decision: Annotated[
        Decision | None, Field(description="When its answers should not be acted on.")
    ]
    roll_up: Annotated[
        Reference | None, Field(description="Groups named instead, of the images abstained on.")
    ]
    label_sets: Annotated[list[LabelSets], Field(description="What `coverage` can ask for.")]
    version_labels: Annotated[
        list[str], Field(description="NAME@LABEL means this version; `stable` is what NAME means.")
    ]
    kind: Annotated[str, Field(description="bundle, ensemble or cascade.")]
    members: Annotated[list[str], Field(description="NAME@VERSION of what it is made of.")]


@with_config(_EXACT)
class UnavailableVersion(TypedDict):
    """A version that is known and does not serve."""

    name: str
    version: int
    state: Annotated[str, Field(description="loading, draining or failed.")]
    reason: Annotated[str | None, Field(description="Why it failed.")]


@with_config(_EXACT)
class Split(TypedDict):
    """Which share of the requests that name a model alone goes to which version."""

    shares: Annotated[
        dict[str, float],
        Field(description="By label or version; the rest is the stable version's."),
    ]
    max_error_excess: Annotated[
        float | None,
        Field(description="Excess over the stable error rate that rolls a version back."),
    ]


@with_config(_EXACT)
class Shadow(TypedDict):
    """A version that is asked a share of those requests too, for the comparison alone."""

    target: Annotated[str, Field(description="A label or a version.")]
    share: float


@with_config(_EXACT)
class RolledBack(TypedDict):
    """A version that failed too often and was taken out of the split."""

    at: Annotated[str, Field(description="RFC 3339.")]
    target: Annotated[str, Field(description="The label or version that the split named.")]
    version: int
    to_version: Annotated[int, Field(description="What the label means instead.")]
    reason: str


@with_config(_EXACT)
class Trial(TypedDict):
    """How a new version of a model is being tried, and how the last one ended."""

    name: str
    split: Split | None
    shadow: Shadow | None
    rolled_back: RolledBack | None


@with_config(_EXACT)
class Models(TypedDict):
    """The models that are served, the versions that are not, and those on trial."""

    models: list[Model]
    unavailable: list[UnavailableVersion]
    trials: list[Trial]


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
