"""What answers a request that names a model alone, while a split or a shadow is ordered."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from service.bundle.image_source import ImageSource
from service.classification import Classification, Options
from service.error_watch import ErrorWatch
from service.errors import ErrorCode, RequestError
from service.metrics import Metrics
from service.model import Model
from service.shadowing import Shadowing

# What the request at work has in its sticky header; requests of one key get one version. Each
# request has a task, and so a context, of its own.
STICKY_KEY: Final[ContextVar[bytes | None]] = ContextVar("sticky_key", default=None)

# What a version is to blame for. The rest is wrong with the request, or with all of the server.
_BLAMED: Final = frozenset(
    {
        ErrorCode.INFERENCE_FAILED,
        ErrorCode.NONFINITE_OUTPUT,
        ErrorCode.INTERNAL,
        ErrorCode.DEADLINE_EXCEEDED,
        ErrorCode.OVERLOADED,
    }
)

Ask = Callable[[Model, ImageSource, Options], Awaitable[Classification]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A version and its share of the requests; the target is empty for what the name means."""

    target: str
    model: Model
    share: float


class Traffic:
    """The split and the shadow of one model. For one event loop.

    Attributes:
        branches: The versions that answer; their shares sum to 1.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        metrics: Metrics,
        *,
        watch: ErrorWatch | None = None,
        shadowing: Shadowing | None = None,
    ) -> None:
        """Takes what answers.

        Args:
            branches: At least one, none without a share.
            metrics: Where answers are counted.
            watch: Is told how each request ended.
            shadowing: Is offered each answer.
        """
        self._direct(branches)
        self._metrics = metrics
        self._watch = watch
        self._shadowing = shadowing

    async def answer(self, image: ImageSource, options: Options, ask: Ask) -> Classification:
        """Returns what the chosen version answers.

        Raises:
            RequestError: As `ask`.
        """
        branch = self.choose(STICKY_KEY.get())
        try:
            answer = await ask(branch.model, image, options)
        except RequestError as error:
            if error.code in _BLAMED:
                self._note(branch, is_failure=True)
            raise
        except Exception:
            self._note(branch, is_failure=True)
            raise
        self._note(branch, is_failure=False)
        if self._shadowing is not None:
            self._shadowing.offer(image, options, answer)
        return answer

    def choose(self, key: bytes | None) -> Branch:
        """Returns a branch by chance, or for a key always the same one.

        A key changes its branch only when that loses share or another one gains: highest random
        weight hashing (Thaler and Ravishankar 1998), with weights (Schindelhauer and Schomaker
        2005).
        """
        if len(self.branches) == 1:
            return self.branches[0]
        if key is None:
            return random.choices(self.branches, cum_weights=self._cumulative)[0]
        return max(self.branches, key=lambda branch: _weigh(branch, key))

    def withdraw(self, target: str, stable: Model) -> None:
        """Gives the share of a target to the stable version, from the next request on."""
        share = sum(branch.share for branch in self.branches if branch.target in (target, ""))
        left = [branch for branch in self.branches if branch.target not in (target, "")]
        self._direct([*left, Branch(target="", model=stable, share=share)])

    def _direct(self, branches: Sequence[Branch]) -> None:
        self.branches = tuple(branches)
        self._cumulative = list(accumulate(branch.share for branch in branches))

    def _note(self, branch: Branch, *, is_failure: bool) -> None:
        model = branch.model
        self._metrics.traffic.count_answer(model.name, model.version, is_failure=is_failure)
        if self._watch is not None:
            self._watch.note(branch.target, is_failure=is_failure)


def _weigh(branch: Branch, key: bytes) -> float:
    # With the name of the model, so that it is not always the same people who try what is new.
    text = f"{branch.model.name}\0{branch.target}\0".encode() + key
    number = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())
    return -branch.share / math.log((number + 1) / (2**56 + 1))
