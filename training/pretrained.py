"""What the authors of published weights did to their images, and by whose leave they may be used.

Mean, standard deviation, size, crop and interpolation differ from one tag of weights to the next,
even for the same network, so nothing here has a default of its own.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torchvision
from pydantic import ValidationError
from timm.data.config import resolve_data_config
from timm.models import PretrainedCfg, get_pretrained_cfg

from service.bundle.manifest import Normalisation, Preprocess, Resize, Size
from training.config import InputRecipe
from training.errors import TrainingError

# Others, unknown ones included, are for a person to read before the weights are used.
FREE_LICENCES = frozenset(
    {"apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "mit"}
)
_TORCHVISION_LICENCE = "bsd-3-clause"
_KEYS = (
    *("policy", "resize", "interpolation", "crop", "mean", "std", "mean_255", "std_255"),
    *("background", "crop_only_resize", "simd_resize", "jpeg_scaled_decode"),
)
_BLACK = (0, 0, 0)

Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """What is known of one tag of weights.

    Attributes:
        tag: As its provider names it.
        classes: How many its classifier tells apart.
        licence: SPDX-like, in lower case, or a link, or "unknown".
        settings: Preprocessing under the keys of `--preprocess`.
    """

    tag: str
    classes: int
    licence: str
    settings: Settings = field(default_factory=dict)


def find_weights(architecture: str, tag: str | None = None) -> list[PublishedWeights]:
    """Returns what is published for `provider:name`, the provider's default first.

    A timm name may end in its tag, `timm:resnet50.a1_in1k`; then only that one is returned, as with
    `tag`. Networks of ours have none.

    Raises:
        TrainingError: There is no such tag.
    """
    provider, _, name = architecture.partition(":")
    found: list[PublishedWeights] = []
    if provider == "timm":
        found = _find_timm(name)
    elif provider == "torchvision" and name in torchvision.models.list_models():
        found = _find_torchvision(name)
    if tag is None:
        return found
    tagged = [one for one in found if one.tag == tag]
    if not tagged:
        known = ", ".join(one.tag for one in found) or "none"
        raise TrainingError(f"{architecture} has no weights {tag!r}; there are {known}")
    return tagged


def sure_settings(
    architecture: str, candidates: list[PublishedWeights], given: Settings
) -> Settings:
    """Returns the preprocessing that all candidates share; nothing when there are none.

    For weights from a file, whose tag nobody told: taking the default's would be wrong in silence.
    They may be nobody's published ones, so what is `given` is not asked of the candidates.

    Raises:
        TrainingError: They differ in something that is not given.
    """
    told = {key.removesuffix("_255") for key in given}
    known = [
        {key: value for key, value in one.settings.items() if key not in told} for one in candidates
    ]
    differing = {
        key for one in known for key in {*one, *known[0]} if one.get(key) != known[0].get(key)
    }
    if differing:
        tags = ", ".join(one.tag for one in candidates)
        raise TrainingError(
            f"{architecture}: preprocessing differs between its published weights; say whose the "
            f"file is: --preprocess TAG, one of {tags}; or, if it is yours, --preprocess "
            + " ".join(f"{key}=..." for key in sorted(differing))
        )
    return known[0] if known else {}


def read_settings(values: Iterable[str]) -> tuple[dict[str, Any], str | None]:
    """Returns the settings and the tag in the values of `--preprocess`; later ones win.

    Each is KEY=VALUE, a `.toml` file of such keys, or a tag of published weights. `resize` and
    `crop` are in pixels, `mean` and `std` of pixels in 0..1; `mean_255` and `std_255` of 0..255.

    Raises:
        TrainingError: A key is unknown, a value or file cannot be read.
    """
    settings: dict[str, Any] = {}
    tag = None
    for value in values:
        key, separator, text = value.partition("=")
        if separator:
            settings[key.strip()] = _parse(text.strip())
        elif value.endswith(".toml"):
            settings |= _read_toml(Path(value))
        else:
            tag = value
    for key in settings:
        if key not in _KEYS:
            raise TrainingError(f"--preprocess {key}: unknown, there are {', '.join(_KEYS)}")
    return settings, tag


def build_input(architecture: str, settings: Settings) -> InputRecipe:
    """Returns the preprocessing and normalisation that `settings` spell out.

    Raises:
        TrainingError: Something is missing, or does not fit.
    """
    scaled = dict(settings)
    for key in ("mean", "std"):
        if (of_255 := scaled.pop(f"{key}_255", None)) is not None:
            scaled[key] = tuple(value / 255 for value in _triple(key, of_255))
    missing = [key for key in ("resize", "crop", "mean", "std") if key not in scaled]
    if missing:
        raise TrainingError(
            f"{architecture}: the preprocessing of these weights is not known; "
            f"give --preprocess {' '.join(f'{key}=...' for key in missing)}"
        )
    crop = scaled["crop"]
    if not isinstance(crop, list | tuple):
        crop = (crop, crop)
    if len(crop) != 2:
        raise TrainingError("--preprocess crop: needs one number, or HEIGHT,WIDTH")
    height, width = crop
    try:
        return InputRecipe(
            preprocess=Preprocess(
                resize=Resize(
                    policy=scaled.get("policy", "shorter_side"),
                    size=scaled["resize"],
                    interpolation=scaled.get("interpolation", "bilinear"),
                ),
                crop=Size(height=height, width=width),
                crop_only_resize=scaled.get("crop_only_resize", False),
                simd_resize=scaled.get("simd_resize", False),
                jpeg_scaled_decode=scaled.get("jpeg_scaled_decode", False),
                background=scaled.get("background", _BLACK),
            ),
            normalisation=Normalisation(
                mean=_triple("mean", scaled["mean"]), std=_triple("std", scaled["std"])
            ),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise TrainingError(f"--preprocess: {where} {first['msg']}") from error


def _find_timm(name: str) -> list[PublishedWeights]:
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        return []
    default = get_pretrained_cfg(name)
    others = [] if tag else [get_pretrained_cfg(one) for one in timm.list_pretrained(f"{base}.*")]
    found: dict[str, PublishedWeights] = {}
    for config in (default, *others):
        if config is not None and config.has_weights:
            found.setdefault(config.tag or "", _describe_timm(config))
    return list(found.values())


def _describe_timm(config: PretrainedCfg) -> PublishedWeights:
    document = config.to_dict()
    resolved = resolve_data_config({}, pretrained_cfg=document)
    _, height, width = resolved["input_size"]
    policies = {"center": "shorter_side", "squash": "squash", "border": "longer_side_pad"}
    settings = {
        "policy": policies[resolved["crop_mode"]],
        # timm/data/transforms_factory.py, transforms_imagenet_eval.
        "resize": math.floor(max(height, width) / resolved["crop_pct"]),
        "interpolation": resolved["interpolation"],
        "crop": (height, width),
        "mean": tuple(resolved["mean"]),
        "std": tuple(resolved["std"]),
    }
    if settings["policy"] == "longer_side_pad":
        settings["background"] = tuple(round(255 * one) for one in resolved["mean"])
    return PublishedWeights(
        tag=config.tag or "",
        classes=config.num_classes or 0,
        licence=(config.license or "unknown").lower(),
        settings=settings,
    )


def _find_torchvision(name: str) -> list[PublishedWeights]:
    family = torchvision.models.get_model_weights(name)
    ordered = [family.DEFAULT, *(one for one in family if one is not family.DEFAULT)]
    found = []
    for weights in ordered:
        transforms = weights.transforms()
        licence = weights.meta.get("license", _TORCHVISION_LICENCE)
        crop = transforms.crop_size
        settings = {
            "policy": "shorter_side",
            "resize": transforms.resize_size[0],
            "interpolation": transforms.interpolation.value,
            "crop": (crop[0], crop[-1]),
            "mean": tuple(transforms.mean),
            "std": tuple(transforms.std),
        }
        found.append(
            PublishedWeights(
                tag=weights.name,
                classes=len(weights.meta["categories"]),
                licence=licence,
                settings=settings,
            )
        )
    return found


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise TrainingError(f"{path}: {error}") from error


def _parse(text: str) -> Any:
    """Returns `text` as TOML would read it; `a,b,c` is a list, and what is no TOML is text."""
    listed = f"[{text}]" if "," in text and not text.startswith("[") else text
    try:
        return tomllib.loads(f"value = {listed}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _triple(key: str, value: Any) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(one) for one in value)
    except (TypeError, ValueError):
        raise TrainingError(f"--preprocess {key}: needs three numbers, R,G,B") from None
    return red, green, blue
