"""The models under measurement: bundles, found or made once into ``.bench/models``."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.photographs import BENCH_FOLDER, Photographs
from benchmarks.progress import say
from service.bundle.manifest import Manifest
from service.bundle.repository import list_versions, read_bundle, resolve

MADE_REPOSITORY = BENCH_FOLDER / "models"
SHIPPED_REPOSITORY = Path("exported_models")


_LABELS = Path("../shared/data/imagenet-classes.json")
_SQUEEZENET = Path("../shared/data/squeezenet1_1-imagenet.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What ``fivecrop import`` is asked for."""

    architecture: str
    options: tuple[str, ...]
    weights: Path | None = None

    @property
    def is_available(self) -> bool:
        return self.weights is None or self.weights.is_file()


_SOURCES = {
    "mobilenet-v2": _Source(
        architecture="torchvision:mobilenet_v2",
        options=("--random-weights", "--preprocess", "IMAGENET1K_V1", "--labels", str(_LABELS)),
    ),
    "mobilenet-v2-simd": _Source(
        architecture="torchvision:mobilenet_v2",
        options=(
            *("--random-weights", "--preprocess", "IMAGENET1K_V1", "--labels", str(_LABELS)),
            *("--preprocess", "simd_resize=true"),
        ),
    ),
    "resnet-18": _Source(
        architecture="torchvision:resnet18",
        options=("--random-weights", "--preprocess", "IMAGENET1K_V1", "--labels", str(_LABELS)),
    ),
    # Its first convolution has padding 0; see the data folder's README for the preprocessing.
    "squeezenet1.1": _Source(
        architecture="seed:squeezenet1_1",
        weights=_SQUEEZENET,
        options=(
            *("--weights", str(_SQUEEZENET), "--labels", str(_LABELS)),
            *("--licence", "bsd-3-clause"),
            *("--preprocess", "resize=256", "--preprocess", "crop=227"),
            *("--preprocess", "mean_255=123,117,104", "--preprocess", "std_255=1,1,1"),
        ),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchModel:
    """One model: its bundle, and what a peer has to know to prepare its photographs alike."""

    name: str
    repository: Path
    folder: Path
    manifest: Manifest

    @property
    def onnx_path(self) -> Path:
        """The fp32 model file."""
        return self.folder / next(v.file for v in self.manifest.variants if v.precision == "fp32")

    @property
    def labels_path(self) -> Path:
        """A JSON list of labels, for the peers; written on demand."""
        path = BENCH_FOLDER / f"{self.name}.labels.json"
        path.write_text(json.dumps([label.name for label in self.manifest.labels]))
        return path

    def describe(self) -> dict[str, object]:
        """Returns what a result has to say about the model."""
        return {
            "architecture": self.manifest.architecture,
            "preprocess": self.manifest.preprocess.model_dump(mode="json"),
            "sha256": hashlib.sha256(self.onnx_path.read_bytes()).hexdigest(),
        }


def load_model(repository: Path, name: str) -> BenchModel:
    """Returns the newest version of a bundle.

    Raises:
        BundleError: There is none, or it cannot be read.
    """
    folder = resolve(repository, name)
    return BenchModel(
        name=name, repository=repository, folder=folder, manifest=read_bundle(folder).manifest
    )


def make_models(photographs: Photographs) -> list[BenchModel]:
    """Returns the models under measurement, importing those that are not there yet.

    MobileNetV2 and ResNet-18 have random weights, which are as fast as trained ones; SqueezeNet's
    are real and are left out when their file is not there. The bundles that the repository ships
    come last.

    Raises:
        subprocess.CalledProcessError: An import failed; it said why.
    """
    names = [name for name, source in _SOURCES.items() if source.is_available]
    for name in names:
        if name not in _list_models(MADE_REPOSITORY):
            say(f"making {name}")
            _import(name, _SOURCES[name], photographs)
    made = [load_model(MADE_REPOSITORY, name) for name in names]
    shipped = _list_models(SHIPPED_REPOSITORY)
    return made + [load_model(SHIPPED_REPOSITORY, name) for name in shipped]


def _list_models(repository: Path) -> list[str]:
    return list(list_versions(repository)) if repository.is_dir() else []


def _import(name: str, source: _Source, photographs: Photographs) -> None:
    command = [str(Path(sys.executable).with_name("fivecrop")), "import", "--name", name]
    command += ["--arch", source.architecture, *source.options]
    command += ["--images", str(photographs.folder), "--repository", str(MADE_REPOSITORY)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
