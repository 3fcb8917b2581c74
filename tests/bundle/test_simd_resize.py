"""Resizing with vector instructions: close to Pillow, and the same on every processor."""

import numpy as np
import pytest
from cykooz_resizer import CpuExtensions, Resizer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from service.bundle import simd_resize
from service.bundle.decode import Limits, decode
from service.bundle.preprocess import cut_views
from service.bundle.simd_resize import resize_box

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Bicubic and Lanczos overshoot between the two passes, which round and cut off separately.
_LEVELS = {"bilinear": 2, "bicubic": 28, "lanczos": 56}


@pytest.mark.parametrize("interpolation", _RESAMPLING)
def test_box_is_resized_as_pillow_does(make_photograph, interpolation):
    image = make_photograph(300, 200)
    box = 20.25, 10.5, 280.75, 199.0
    ours = resize_box(image, (112, 96), interpolation, box)
    pillow = image.resize((112, 96), _RESAMPLING[interpolation], box=box)
    difference = np.abs(np.asarray(ours).astype(int) - np.asarray(pillow))
    assert difference.max() <= _LEVELS[interpolation]
    assert difference.mean() < 0.7
    assert np.asarray(pillow).std() > 10


@settings(deadline=None)
@given(
    image_size=st.tuples(st.integers(1, 160), st.integers(1, 160)),
    size=st.integers(8, 90),
    interpolation=st.sampled_from(sorted(_RESAMPLING)),
    tta=st.sampled_from(["none", "five_crop", "multi_scale"]),
    policy=st.sampled_from(["shorter_side", "squash", "longer_side_pad"]),
)
def test_views_differ_from_the_exact_resize_by_rounding_only(
    image_size, size, interpolation, tta, policy, make_photograph, make_preprocess
):
    image = make_photograph(160, 160).crop((0, 0, *image_size))
    exact, simd = (
        cut_views(
            image,
            make_preprocess(
                size, size * 7 // 8, interpolation=interpolation, policy=policy, simd_resize=flag
            ),
            tta=tta,
        ).astype(int)
        for flag in (False, True)
    )
    difference = np.abs(exact - simd)
    assert difference.max() <= _LEVELS[interpolation]
    assert difference.mean() < 1.0


@pytest.mark.data
def test_views_of_photographs_are_within_two_levels(photographs, make_preprocess):
    for data in photographs.values():
        rgb = decode(data, Limits(), background=(0, 0, 0)).rgb
        exact, simd = (
            cut_views(rgb, make_preprocess(256, 224, simd_resize=flag)).astype(int)
            for flag in (False, True)
        )
        assert np.abs(exact - simd).max() <= 2
        assert np.abs(exact - simd).mean() < 0.25


@pytest.mark.parametrize("interpolation", _RESAMPLING)
def test_every_processor_gives_the_same_pixels(make_photograph, interpolation, monkeypatch):
    image = make_photograph(311, 217)
    results = []
    for extensions in CpuExtensions:
        resizer = Resizer()
        resizer.cpu_extensions = extensions  # what the processor lacks is ignored
        monkeypatch.setattr(simd_resize, "Resizer", lambda resizer=resizer: resizer)
        results.append(np.asarray(resize_box(image, (90, 64), interpolation, (3.5, 0, 300, 217))))
    assert all(np.array_equal(result, results[0]) for result in results)


def test_nearest_is_refused(make_preprocess):
    with pytest.raises(ValidationError, match="nearest"):
        make_preprocess(64, 56, interpolation="nearest", simd_resize=True)
