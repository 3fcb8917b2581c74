"""The photographs that every measurement sends: real ones, in one order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

BENCH_FOLDER = Path(".bench")
DEFAULT_FOLDER = Path("../shared/data/imagenet-sample")


@dataclass(frozen=True, slots=True, kw_only=True)
class Photographs:
    """Encoded photographs and where they lie."""

    folder: Path
    paths: tuple[Path, ...]
    bodies: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        """The sha256 of all bodies in order."""
        return hashlib.sha256(b"".join(self.bodies)).hexdigest()

    def describe(self) -> dict[str, object]:
        """Returns what a result has to say about the images."""
        total = sum(len(body) for body in self.bodies)
        return {
            "folder": str(self.folder),
            "images": len(self.bodies),
            "mean_kb": round(total / len(self.bodies) / 1000, 1),
            "sha256": self.digest,
        }

    def write_list(self) -> Path:
        """Returns a file that names every photograph, one a line, for wrk's script."""
        BENCH_FOLDER.mkdir(exist_ok=True)
        listing = BENCH_FOLDER / "photographs.txt"
        listing.write_text("".join(f"{path.resolve()}\n" for path in self.paths))
        return listing


def load_photographs(folder: Path = DEFAULT_FOLDER) -> Photographs:
    """Returns every JPEG of ``folder``, sorted by name.

    Raises:
        FileNotFoundError: The folder holds none.
    """
    paths = tuple(sorted(p for p in folder.iterdir() if p.suffix.lower() in {".jpg", ".jpeg"}))
    if not paths:
        raise FileNotFoundError(f"no JPEG in {folder}")
    bodies = tuple(path.read_bytes() for path in paths)
    return Photographs(folder=folder, paths=paths, bodies=bodies)
