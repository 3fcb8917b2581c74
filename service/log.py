"""One line a record on standard error, for people (text) or for log collectors (JSON)."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Literal

LogFormat = Literal["text", "json"]

# Facts of a record, as a mapping that JSON lines show key by key.
FACTS: Final = "facts"

_TEXT: Final = "%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s"

logger = logging.getLogger("service")


def configure_log(level: str, form: LogFormat = "text") -> None:
    """Sends the records of `service` to standard error at `level`; others only from warnings up.

    Others that a host sends somewhere take the same form. Called once by a composition root. The
    parser of forms warns of what a stranger sends, which is counted and not logged. Pillow warns
    about metadata that is none of our business (broken EXIF, for example) once for each such
    upload, so those are silenced.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_TEXT))
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
    for other in logging.getLogger().handlers:
        other.setFormatter(handler.formatter)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"PIL(\..*)?")


def toggle_debug(level: str) -> None:
    """Changes to `debug`, or back to `level` from there."""
    is_debug = logger.level == logging.DEBUG
    logger.setLevel(level.upper() if is_debug else logging.DEBUG)
    logger.warning("the log level is now %s", logging.getLevelName(logger.level).lower())


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line: when, how bad, who, what, then the record's facts or its message."""
        time = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
        }
        facts = getattr(record, FACTS, None)
        if isinstance(facts, Mapping):
            line.update(facts)
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"), default=str)
