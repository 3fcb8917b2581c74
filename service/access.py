"""Who may do what: every route and every rpc declares its access, and here it is decided."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from enum import Enum
from typing import Final

from service.api_keys import KeyFile, KeyScope
from service.errors import ErrorCode, RequestError

# Names of the header or the metadata that a key comes in.
CREDENTIAL_NAMES: Final = ("authorization", "x-api-key")

# The id of the key of the request at work; None without keys. Each request has a task, and so a
# context, of its own.
CALLER: Final[ContextVar[str | None]] = ContextVar("caller", default=None)


class Access(Enum):
    """What a route or an rpc asks of its caller."""

    OPEN = None
    INFER = KeyScope.INFER
    METRICS = KeyScope.METRICS
    ADMIN = KeyScope.ADMIN


class AccessControl:
    """Lets requests through or refuses them.

    Without a key file everybody may classify and read metrics, and nobody may administer: whoever
    can reach an admin route without a key could replace the models.
    """

    def __init__(self, keys: KeyFile | None) -> None:
        self._keys = keys

    def needs_key(self, access: Access) -> bool:
        """Whether `admit` has to be asked."""
        return access is not Access.OPEN and (self._keys is not None or access is Access.ADMIN)

    def admit(self, access: Access, offered: Sequence[tuple[str, str]]) -> None:
        """Returns when the caller may pass; `CALLER` then holds the id of its key.

        Args:
            access: What the route asks; it needs a key.
            offered: Name, in lower case, and value of each credential of the request.

        Raises:
            RequestError: `unauthenticated` without a valid key, `forbidden` with one that is not
                for this.
        """
        if self._keys is None:
            raise RequestError(ErrorCode.FORBIDDEN, "this is off: the server has no API keys")
        key = self._keys.find(_take_key(offered))
        if key is None:
            raise RequestError(ErrorCode.UNAUTHENTICATED, "the API key is not valid")
        if key.has_expired:
            raise RequestError(ErrorCode.UNAUTHENTICATED, "the API key has expired")
        if access.value not in key.scopes:
            raise RequestError(ErrorCode.FORBIDDEN, f"the API key is not for {access.value}")
        CALLER.set(key.id)


def _take_key(offered: Sequence[tuple[str, str]]) -> str:
    if len(offered) != 1:
        # Of several, a proxy in front may have looked at another one than we would.
        raise RequestError(
            ErrorCode.UNAUTHENTICATED, "send one API key, as Authorization: Bearer or X-API-Key"
        )
    name, value = offered[0]
    if name == "x-api-key":
        return value
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer":
        raise RequestError(ErrorCode.UNAUTHENTICATED, "Authorization is not a Bearer key")
    return token.strip()
