"""One encoded image that several models are asked about: what they have in common is done once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from service.bundle.preprocess import PreparedImage, Way, group_by_decoding, prepare_all
from service.bundle.structure import Limits


class SharedImage:
    """Makes the views of an image when the first model needs them; for any thread.

    Whoever comes first makes those of all models that are asked together, and those who come
    meanwhile wait for it. Views are kept and never what they were cut from, which may be a hundred
    times as large and would lie there while a request waits for its turn.

    Attributes:
        content: The file.
    """

    def __init__(self, content: bytes, together: Sequence[Way] = ()) -> None:
        """Takes what each model makes of it, for models that are asked together."""
        self.content = content
        self._together = together
        self._prepared: dict[Way, PreparedImage] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Returns the size in bytes."""
        return len(self.content)

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.content).digest()

    @property
    def cost_share(self) -> float:
        """What each model has to do, of decoding the image."""
        return len(group_by_decoding(self._together)) / len(self._together) if self._together else 1

    def prepare(self, way: Way, limits: Limits) -> PreparedImage:
        """Returns the views, as `service.bundle.preprocess.prepare` makes them.

        Raises:
            RequestError: As there; what was refused is looked at again for whoever comes next.
        """
        with self._lock:
            if way in self._prepared:
                return self._prepared[way]
            made = prepare_all(self.content, (way, *self._together), limits=limits)
            self._prepared |= {way: replace(one, is_shared=True) for way, one in made.items()}
            return self._prepared[way] if self._together else made[way]
