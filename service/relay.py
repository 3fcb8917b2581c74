"""Lets every worker follow a change of the models that one of them made.

Runs in the supervisor, over the socket that it has to each worker; lines of words:

    worker -> supervisor    change TOKEN NAME VERSIONS      it serves these versions of NAME now
    supervisor -> others    follow TOKEN NAME VERSIONS      do as it did; VERSIONS is what to expect
    other -> supervisor     followed TOKEN yes|no           whether it serves exactly these now
    supervisor -> worker    settled TOKEN yes|no            whether all of them do

The content of a change does not travel: each worker reads the repository and the orders itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

CHANGE: Final = "change"
FOLLOW: Final = "follow"
FOLLOWED: Final = "followed"
SETTLED: Final = "settled"
YES: Final = "yes"
NO: Final = "no"

# Of the request to look at everything, which nobody waits for.
NO_TOKEN: Final = "-"


@dataclass(slots=True)
class _Change:
    asker: int
    missing: set[int]
    answer: str = YES


class Relay:
    """The changes that workers still have to follow."""

    def __init__(self, tell: Callable[[int, str], None]) -> None:
        """Makes a relay; `tell` sends a line to the worker of an index."""
        self._tell = tell
        self._members: set[int] = set()
        self._changes: dict[str, _Change] = {}
        self._has_heard_any = False

    def join(self, index: int, *, is_late: bool) -> None:
        """Counts a worker in; one that comes late may have missed a change, or seen a newer one.

        So then everybody looks again, and all serve the same.
        """
        self._members.add(index)
        if is_late or self._has_heard_any:
            for member in sorted(self._members):
                self._tell(member, f"{FOLLOW} {NO_TOKEN}")

    def leave(self, index: int) -> None:
        """Counts a worker out; nobody waits for it any more."""
        self._members.discard(index)
        for token, change in list(self._changes.items()):
            change.missing.discard(index)
            self._settle(token, change)

    def hear(self, index: int, line: str) -> None:
        """Handles a line of a worker."""
        verb, token, *words = line.split()
        if verb == CHANGE:
            change = _Change(index, self._members - {index})
            self._changes[token] = change
            self._has_heard_any = True
            for member in sorted(change.missing):
                self._tell(member, " ".join((FOLLOW, token, *words)))
            self._settle(token, change)
        elif verb == FOLLOWED and token in self._changes:
            change = self._changes[token]
            change.missing.discard(index)
            if words != [YES]:
                change.answer = NO
            self._settle(token, change)

    def _settle(self, token: str, change: _Change) -> None:
        if not change.missing:
            del self._changes[token]
            if change.asker in self._members:
                self._tell(change.asker, f"{SETTLED} {token} {change.answer}")
