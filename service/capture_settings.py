"""The settings of what is kept of the images that were answered, to train on them."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings


class CaptureSettings(BaseSettings):
    """Part of `Settings`."""

    capture_folder: Path | None = Field(
        None,
        description="Folder that a share of the images is kept in, with what was answered, as "
        "Parquet to train on; none keeps none. Needs the extra `capture`. These are your clients' "
        "images: read docs/security.md first.",
    )
    capture_share: float = Field(
        0.01, ge=0, le=1, description="Share of the answered images that is kept, by chance."
    )
    capture_below_score: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Keep, besides that share, every image whose best class has a lower score.",
    )
    capture_max_mib: int = Field(
        1024,
        ge=64,
        description="Largest size of that folder, of all workers together, in MiB; the oldest part "
        "files make room for new ones.",
    )
    capture_part_s: float = Field(
        600.0,
        ge=1,
        le=86_400,
        description="Seconds until what was kept is written to a part file; 32 MiB are written "
        "sooner.",
    )
