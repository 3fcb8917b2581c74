"""A running service as the command line speaks to it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any, Final

from service.errors import StartError

# A load verifies, warms and proves a version before it is answered.
_TIMEOUT_S: Final = 600.0


class ServiceClient:
    """Asks the service at a URL, with a key when it has one."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url.rstrip("/")
        self._key = key
        # The service is where the operator says, whatever proxy this machine has.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, method: str, path: str, document: object = None) -> dict[str, Any]:
        """Returns the JSON answer.

        Raises:
            StartError: It cannot be reached, or refuses; with the reason that it gives.
        """
        if not self._url.startswith(("http://", "https://")):
            raise StartError(f"{self._url} is not an http:// or https:// address")
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(
            self._url + path, data=body, headers=headers, method=method
        )
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as response:
                answer: dict[str, Any] = json.loads(response.read())
                return answer
        except urllib.error.HTTPError as error:
            raise StartError(_reason(error)) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise StartError(f"{self._url} does not answer: {reason}") from error


def _reason(error: urllib.error.HTTPError) -> str:
    """Returns what a problem document says, or the status of anything else."""
    try:
        with error:
            problem = json.loads(error.read())
        hint = "; the option --key, or FIVECROP_KEY, gives one" if error.code == 401 else ""
        return f"{problem['detail']} ({problem['code']}){hint}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"the service answers {error.code}"
