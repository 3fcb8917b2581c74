"""Small pictures of scored images, found again by the path in their rows."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

from PIL import Image

from service.bundle.decode import decode
from service.bundle.structure import Limits
from service.errors import RequestError
from service.score.entry import Entry, File
from service.score.errors import ScoreError
from service.score.inputs import Inputs
from service.score.needs import Needs
from service.score.storage import Reader, ReadError, is_url

_WHITE = (255, 255, 255)
_FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "tiff")


def load_thumbnails(
    paths: Iterable[str], side: int, *, column: str | None, max_bytes: int
) -> dict[str, Image.Image]:
    """Returns pictures no larger than `side` of those images that can still be read.

    Images of remote shards are left out: a whole shard would be fetched for a few of them.

    Args:
        paths: As in the rows.
        side: Width and height at most, in pixels.
        column: Of tables, as in the job.
        max_bytes: Of an image file.
    """
    wanted = set(paths)
    reader = Reader(max_bytes)
    found = {}
    for entry in _find(wanted, column, max_bytes):
        try:
            limits = Limits(formats=_FORMATS)
            picture = decode(reader.read(entry), limits, background=_WHITE).rgb
        except (ReadError, RequestError):
            continue
        picture.thumbnail((side, side))
        found[entry.path] = picture
    return found


def encode_data_url(picture: Image.Image) -> str:
    """Returns the picture as a JPEG in a `data:` URL."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _find(wanted: set[str], column: str | None, max_bytes: int) -> Iterable[Entry]:
    containers: dict[str, set[str]] = {}
    for path in sorted(wanted):
        container, mark, _ = path.partition("#")
        if not mark:
            yield Entry(0, path, File(path))
        elif not is_url(container):
            containers.setdefault(container, set()).add(path)
    for container, inside in containers.items():
        try:
            for entry in Inputs([container], column=column, max_bytes=max_bytes).entries(Needs()):
                if entry.path in inside:
                    inside.discard(entry.path)
                    yield entry
                if not inside:
                    break
        except ScoreError:
            continue  # the shard is gone; the scores are not
