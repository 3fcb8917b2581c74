"""A copy of a bundle that stays what it is, whatever happens in the repository during a job."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from service.bundle.repository import Bundle, read_bundle, verify_files
from service.errors import BundleError
from service.score.errors import ScoreError
from service.score.storage import tell


def take_snapshot(bundle: Bundle, cache: Path) -> Bundle:
    """Returns a verified copy of the bundle in `cache`, in a folder named by its digest.

    The layout is that of `service.remote_source`; a copy that is there is verified and used again.

    Raises:
        BundleError: A file of the bundle is not what its manifest says.
        ScoreError: The cache cannot be written.
    """
    kept = cache / bundle.digest
    folder = kept / bundle.manifest.name / str(bundle.manifest.version)
    if folder == bundle.folder:
        verify_files(bundle)
        return bundle
    try:
        if folder.is_dir():
            try:
                return _verified(folder, bundle.digest)
            except BundleError:
                shutil.rmtree(kept)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".staging-", dir=cache) as parent:
            staging = Path(parent) / "bundle" / bundle.manifest.name / folder.name
            shutil.copytree(bundle.folder, staging)
            _verified(staging, bundle.digest)
            try:
                (Path(parent) / "bundle").rename(kept)
            except OSError:
                if not folder.is_dir():  # otherwise another job was faster
                    raise
        return read_bundle(folder)
    except OSError as error:
        raise ScoreError(
            f"cannot keep a copy of {bundle.reference} in {cache}: {tell(error)}"
        ) from error


def _verified(folder: Path, digest: str) -> Bundle:
    bundle = read_bundle(folder)
    if bundle.digest != digest:
        raise BundleError(f"{bundle.reference} changed while it was copied")
    verify_files(bundle)
    return bundle
