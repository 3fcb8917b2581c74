"""A copy of a bundle that stays what it is, whatever happens in the repository during a job."""

from __future__ import annotations

import shutil
from functools import partial

from service.bundle.repository import Bundle
from service.bundle_cache import BundleCache
from service.score.errors import ScoreError
from service.score.storage import tell


def take_snapshot(bundle: Bundle, cache: BundleCache) -> Bundle:
    """Returns a verified copy of the bundle in the cache; one that came from there is itself.

    Raises:
        BundleError: A file of the bundle is not what its manifest says.
        ScoreError: The cache cannot be written.
    """
    if bundle.lease is not None:
        return bundle
    copy = partial(shutil.copytree, bundle.folder, dirs_exist_ok=True)
    try:
        return cache.keep(bundle.manifest, bundle.digest, copy)
    except OSError as error:
        raise ScoreError(
            f"cannot keep a copy of {bundle.reference} in {cache.folder}: {tell(error)}"
        ) from error
