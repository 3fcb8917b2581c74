"""One line a record on standard error, for people and for log collectors."""

from __future__ import annotations

import logging
import sys
import warnings


def configure_log(level: str) -> None:
    """Sends the records of `service` to standard error at `level`; others only from warnings up.

    Called once by a composition root. Pillow warns about metadata that is none of our business
    (broken EXIF, for example) once for each such upload, so those are silenced.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s")
    )
    logger = logging.getLogger("service")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
    warnings.filterwarnings("ignore", module=r"PIL(\..*)?")
