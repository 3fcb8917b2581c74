"""How a running service is asked: what each protocol has to do, and what it may answer.

HTTP is in `service.score.http_transport`. gRPC is in `service.grpc_transport`, above this package,
which knows no protocol's libraries; whoever starts a job hands it in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import SplitResult, urlsplit

from service.errors import ErrorCode
from service.score.errors import JobFailed, ScoreError
from service.score.messages import Spent

if TYPE_CHECKING:
    from service.bundle.postprocess import Prediction

# Connecting to the service, and everything about one image.
CONNECT_S: Final = 10.0
ANSWER_S: Final = 60.0

# The service can do it, but not now.
_BUSY: Final = frozenset(
    {
        ErrorCode.OVERLOADED,
        ErrorCode.RATE_LIMITED,
        ErrorCode.NOT_READY,
        ErrorCode.DRAINING,
        ErrorCode.DEADLINE_EXCEEDED,
        ErrorCode.REQUEST_TIMEOUT,
    }
)
# These are about the job, not about an image.
_FATAL: Final = frozenset(
    {
        ErrorCode.UNAUTHENTICATED,
        ErrorCode.FORBIDDEN,
        ErrorCode.MODEL_NOT_FOUND,
        ErrorCode.NOT_FOUND,
        ErrorCode.METHOD_NOT_ALLOWED,
    }
)


class Busy(Exception):  # noqa: N818 - nothing is wrong with the image, nor with the job
    """The service does not answer, or not now; asking again may help.

    Attributes:
        retry_after_s: When the service wants to be asked again, if it said so.
    """

    def __init__(self, told: str, retry_after_s: float | None = None) -> None:
        super().__init__(told)
        self.retry_after_s = retry_after_s


class ImageRefused(Exception):  # noqa: N818 - an answer, and what an error row says
    """The service has no answer for this image; `code` goes into its row."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that a service has."""

    name: str
    version: int
    digest: str
    provider: str
    variant: str
    classes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of each image."""

    model: str
    top_k: int
    tta: str
    embedding: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageAnswer:
    """What the service says of an image; `spent` is where its time went."""

    predictions: list[Prediction]
    abstained: bool
    width: int
    height: int
    format: str
    embedding: list[float] | None
    spent: Spent


class Transport(Protocol):
    """One connection to a service, for one thread. It connects, and again, when it needs to."""

    def models(self) -> list[ServedModel]:
        """Returns what the service has; raises Busy, or JobFailed when it refuses."""

    def classify(self, image: bytes, question: Question) -> ImageAnswer:
        """Returns the answer; raises Busy, ImageRefused, or JobFailed when there is no use."""

    def interrupt(self) -> None:
        """Makes another thread that waits for an answer raise Busy."""

    def close(self) -> None:
        """Lets go of the connection, when no thread uses it."""


# Opens a transport to a URL with an API key, if there is one; ScoreError when it is no address.
Connect = Callable[[str, str | None], Transport]


def split_address(url: str) -> SplitResult:
    """Returns the parts of the address of a service.

    Raises:
        ScoreError: It is none.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:
        pass  # a port that is no number, a bracket without its other half
    raise ScoreError(f"{url} is not an http:// or https:// address")


def judge(code: str, detail: str, retry_after_s: float | None) -> Busy | ImageRefused | JobFailed:
    """Returns what an error of the service means for the job."""
    if code in _BUSY:
        return Busy(f"answers {code}", retry_after_s)
    if code in _FATAL:
        return JobFailed(detail)
    return ImageRefused(code)
