"""A combination that serves: its manifest, and the models of its members while somebody needs them.

It holds the very models that it was put together from. When it or one of them is replaced, requests
that found it go on with these, and only then are they drained: see `Rollout`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from service.bundle.combination import Combination, FoundCombination
from service.errors import BundleError
from service.model import Model


@dataclass(slots=True, kw_only=True, eq=False)
class CombinedModel:
    """An ensemble or a cascade whose members serve.

    Attributes:
        manifest: How the members make an answer.
        digest: The sha256 of its `combination.json`.
        models: Of its members, in their order.
    """

    manifest: Combination
    digest: str
    models: tuple[Model, ...]
    _requests: int = 0
    _is_idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """Its name."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """Its version."""
        return self.manifest.version

    @property
    def reference(self) -> str:
        """NAME@VERSION, as users write it."""
        return self.manifest.reference

    @property
    def is_held(self) -> bool:
        """Whether a request is with its members."""
        return self._requests > 0

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keeps the members from being drained while a request goes from one to the next."""
        self._requests += 1
        self._is_idle.clear()
        try:
            yield
        finally:
            self._requests -= 1
            if self._requests == 0:
                self._is_idle.set()

    async def wait_until_idle(self) -> None:
        """Returns when no request is with its members."""
        if self.is_held:
            await self._is_idle.wait()


def join_members(
    found: FoundCombination, find: Callable[[str, int], Model | None]
) -> CombinedModel:
    """Returns the combination over the models that `find` gives for NAME and VERSION.

    Raises:
        BundleError: A member does not serve, or is not the one that the combination was validated
            with, and which.
    """
    reference = found.manifest.reference
    models = []
    for member in found.manifest.members:
        name, version = split_reference(member.model)
        model = find(name, version)
        if model is None:
            raise BundleError(f"{reference}: its member {member.model} does not serve")
        if model.bundle.digest != member.digest:
            raise BundleError(
                f"{reference}: its member {member.model} is not the one it was validated with"
            )
        models.append(model)
    if any(model.labels != models[0].labels for model in models[1:]):
        raise BundleError(f"{reference}: its members have different labels")
    return CombinedModel(manifest=found.manifest, digest=found.digest, models=tuple(models))


def split_reference(reference: str) -> tuple[str, int]:
    """Returns the name and the version of a NAME@VERSION that was checked."""
    name, _, version = reference.partition("@")
    return name, int(version)
