"""What an administrator may look at in a running server: its settings as they took effect."""

from __future__ import annotations

import logging
import re
from typing import Final

from starlette.routing import Route
from starlette.types import Receive, Scope

from service.access import Access
from service.http_answer import Answer, encode_json
from service.http_edge import Endpoint
from service.http_options import refuse_query
from service.settings import Settings

# A name and password before the host, and whatever comes as a query: both carry credentials.
_SECRETS_OF_URLS: Final = re.compile(r"(?<=://)[^/@\s]*(?=@)|(?<=\?)[^\s,]*")
_MASK: Final = "***"


class DebugApi:
    """The routes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def routes(self) -> list[Route]:
        """Returns the table of routes; without keys nobody is an administrator."""
        if self._settings.api_keys is None:
            return []
        return [
            Route("/debug/config", Endpoint(self.show_config, Access.ADMIN), methods=["GET"]),
        ]

    async def show_config(self, scope: Scope, receive: Receive) -> Answer:  # noqa: ARG002
        """Answers with every setting, secrets masked, and the log level of this worker now."""
        refuse_query(scope["query_string"])
        settings = {
            name: mask_secrets(value) if isinstance(value, str) else value
            for name, value in self._settings.model_dump(mode="json").items()
        }
        level = logging.getLogger("service").getEffectiveLevel()
        document = {"settings": settings, "log_level": logging.getLevelName(level).lower()}
        return Answer(body=encode_json(document))


def mask_secrets(text: str) -> str:
    """Returns the text with the credentials of the URLs in it masked."""
    return _SECRETS_OF_URLS.sub(_MASK, text)
