"""Pictures of what a network has learnt and of what it looks at, written into a folder.

first_layer.png           the filters of the first convolution
feature_maps-LAYER.png    what the maps of a layer answer to an image
attribution.png           which pixels speak for a class, by six methods
patches-LAYER.png         the patches of real images that excite single maps most
maximised.png             images made so that a class, or a map, answers as strongly as it can
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from service.bundle.decode import Limits
from service.bundle.heatmap import occlude, occlusion_evidence
from service.bundle.preprocess import prepare
from service.errors import RequestError
from training.attribution import (
    Map,
    grad_cam,
    integrated_gradients,
    map_layers,
    recording,
    saliency,
    smooth_grad,
)
from training.config import InputRecipe
from training.errors import TrainingError
from training.maximise import maximise, strongest_patches
from training.models.normalise import Normalise
from training.pictures import clipped, enlarge, grey, sheet, signed

_MAPS, _CHANNELS, _PATCHES = 32, 5, 6
_CLASSES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A network to look into: normalised [N, 3, H, W] -> logits [N, C], in evaluation mode."""

    net: nn.Module
    input: InputRecipe
    class_names: tuple[str, ...]

    @property
    def normalise(self) -> Normalise:
        """What turns views into the network's images."""
        return Normalise(self.input.normalisation)

    def view(self, path: Path) -> NDArray[np.uint8]:
        """Returns the view that is served of an image file, uint8 [H, W, 3].

        Raises:
            TrainingError: It cannot be read.
        """
        try:
            data = path.read_bytes()
            view: NDArray[np.uint8] = prepare(data, self.input.preprocess, limits=Limits()).views[0]
        except RequestError as error:
            raise TrainingError(f"{path}: {error}") from error
        except OSError as error:
            raise TrainingError(f"{path}: {error.strerror}") from error
        return view

    def layers(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape [C, h, w] of each layer that puts out maps, in order."""
        crop = self.input.preprocess.crop
        return map_layers(self.net, torch.zeros(1, 3, crop.height, crop.width))

    def logits(self, views: NDArray[np.uint8]) -> Tensor:
        """Returns logits [N, C] of views uint8 [N, H, W, 3]."""
        with torch.no_grad():
            found: Tensor = self.net(self.normalise(torch.tensor(views)))
        return found


def choose_layers(layers: Sequence[str]) -> tuple[str, ...]:
    """Returns the first, the middle and the last of the layers.

    Raises:
        TrainingError: There is none: the network puts out no maps.
    """
    if not layers:
        raise TrainingError("no layer of the network puts out maps")
    return tuple(dict.fromkeys((layers[0], layers[len(layers) // 2], layers[-1])))


def draw_first_layer(subject: Subject) -> Image.Image | None:
    """Returns the filters that read pixels, or None where there are none of 2 x 2 or more."""
    for parameter in subject.net.parameters():
        if parameter.ndim == 4 and parameter.shape[1] in (1, 3) and parameter.shape[2] > 1:
            filters = parameter.detach().numpy()
            # One scale for all, so that a filter that is nearly nothing looks it.
            scaled = 0.5 + 0.5 * filters / max(float(np.abs(filters).max()), 1e-12)
            pixels = (scaled * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
            if pixels.shape[3] == 1:
                pixels = pixels.repeat(3, axis=3)
            return sheet([Image.fromarray(one) for one in pixels[:128]], columns=16, side=48)
    return None


def draw_feature_maps(subject: Subject, view: NDArray[np.uint8], layer: str) -> Image.Image:
    """Returns the view and the first maps of a layer, each scaled for itself."""
    with torch.no_grad(), recording(subject.net, [layer]) as kept:
        subject.net(subject.normalise(torch.tensor(view[None])))
    maps = kept[layer][0, :_MAPS].numpy()
    pictures = [Image.fromarray(view), *(grey(one) for one in maps)]
    captions = [layer, *(f"map {number}" for number in range(len(maps)))]
    return sheet(pictures, columns=11, side=96, captions=captions)


def attribute(subject: Subject, view: NDArray[np.uint8], index: int, layer: str) -> dict[str, Map]:
    """Returns the evidence for a class by every method, float32 [h, w] each."""
    image = subject.normalise(torch.tensor(view[None]))
    red, green, blue = (round(255 * one) for one in subject.input.normalisation.mean)
    probabilities = subject.logits(occlude(view, (red, green, blue))).softmax(dim=1).numpy()
    return {
        "gradient": saliency(subject.net, image, index),
        "SmoothGrad": smooth_grad(subject.net, image, index),
        "integrated gradients": integrated_gradients(subject.net, image, index),
        f"Grad-CAM, {layer}": grad_cam(subject.net, image, index, layer),
        "occlusion": occlusion_evidence(probabilities, index),
    }


def draw_attributions(
    subject: Subject, view: NDArray[np.uint8], index: int, layer: str
) -> Image.Image:
    """Returns the view beside its evidence for a class; maps of cells are laid over it."""
    picture = enlarge(Image.fromarray(view), 224)
    score = float(subject.logits(view[None]).softmax(dim=1)[0, index])
    pictures, captions = [picture], [f"{subject.class_names[index]} {score:.1%}"]
    for name, found in attribute(subject, view, index, layer).items():
        if name == "integrated gradients":
            drawn = signed(found)
        elif found.shape == view.shape[:2]:
            drawn = grey(clipped(found))
        else:
            drawn = _over(picture, found)
        pictures.append(enlarge(drawn, 224))
        captions.append(name)
    return sheet(pictures, columns=3, side=224, captions=captions)


def draw_patches(subject: Subject, views: NDArray[np.uint8], layer: str) -> Image.Image:
    """Returns a row of patches for each of some maps of a layer, evenly spread."""
    total = subject.layers()[layer][0]
    channels = np.linspace(0, total - 1, min(total, _CHANNELS)).astype(int).tolist()
    found = strongest_patches(
        subject.net, subject.normalise, views, layer, channels, min(_PATCHES, len(views))
    )
    pictures = [Image.fromarray(one.pixels) for row in found.values() for one in row]
    captions = [
        f"map {channel}: {one.activation:.2g}" for channel, row in found.items() for one in row
    ]
    return sheet(pictures, columns=min(_PATCHES, len(views)), side=96, captions=captions)


def draw_maximised(subject: Subject, layer: str, steps: int) -> Image.Image:
    """Returns images made for the first classes, and for some maps of a layer."""
    crop = subject.input.preprocess.crop
    size = crop.height, crop.width
    classes = min(len(subject.class_names), _CLASSES)
    total = subject.layers()[layer][0]
    channels = np.linspace(0, total - 1, min(total, _CHANNELS)).astype(int).tolist()

    def logit(images: Tensor) -> Tensor:
        logits: Tensor = subject.net(images)
        return logits[torch.arange(classes), torch.arange(classes)]

    def middle(images: Tensor) -> Tensor:
        with recording(subject.net, [layer]) as kept:
            subject.net(images)
        maps = kept[layer]
        return maps[torch.arange(len(channels)), channels].mean(dim=(1, 2))

    objectives: list[tuple[Callable[[Tensor], Tensor], int]] = [
        (logit, classes),
        (middle, len(channels)),
    ]
    made = [
        maximise(subject.net, subject.normalise, size, objective, count, steps=steps)
        for objective, count in objectives
    ]
    pictures = [Image.fromarray(one) for images in made for one in images]
    captions = [*subject.class_names[:classes], *(f"{layer} {channel}" for channel in channels)]
    return sheet(pictures, columns=5, side=128, captions=captions)


def visualise(
    subject: Subject,
    folder: Path,
    *,
    images: Sequence[Path],
    views: NDArray[np.uint8] | None,
    index: int | None = None,
    layer: str | None = None,
    steps: int = 48,
) -> list[Path]:
    """Writes the pictures into a folder and returns their files.

    Args:
        subject: The network.
        folder: Made when absent.
        images: Files whose feature maps and evidence are drawn.
        views: Images of the data, uint8 [N, H, W, 3], to look for patches in; None looks for none.
        index: The class that is explained; by default each image's best one.
        layer: Of the maps and of Grad-CAM; by default some, and the last.
        steps: Of the ascent that makes images; 0 makes none.

    Raises:
        TrainingError: A layer is not there, an image cannot be read, or a file not be written.
    """
    known = list(subject.layers())
    chosen = choose_layers(known) if layer is None else (layer,)
    if layer is not None and layer not in known:
        raise TrainingError(f"{layer!r} puts out no maps; these do: {', '.join(known)}")
    middle = choose_layers(known)[1 % len(known)]
    pictures: dict[str, Callable[[], Image.Image | None]] = {
        "first_layer": partial(draw_first_layer, subject)
    }
    for number, path in enumerate(images):
        suffix = f"-{number}" if len(images) > 1 else ""
        view = subject.view(path)
        best = int(subject.logits(view[None]).argmax()) if index is None else index
        pictures[f"attribution{suffix}"] = partial(
            draw_attributions, subject, view, best, chosen[-1]
        )
        for one in chosen:
            name = f"feature_maps-{one}{suffix}"
            pictures[name] = partial(draw_feature_maps, subject, view, one)
    if views is not None:
        for one in chosen:
            pictures[f"patches-{one}"] = partial(draw_patches, subject, views, one)
    if steps:
        pictures["maximised"] = partial(draw_maximised, subject, middle, steps)
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in pictures.items():
            picture = draw()
            if picture is not None:
                picture.save(folder / f"{name}.png", "PNG")
                files.append(folder / f"{name}.png")
    except OSError as error:
        raise TrainingError(f"{folder} cannot be written: {error.strerror}") from error
    return files


def _over(picture: Image.Image, evidence: Map) -> Image.Image:
    """Returns the picture with evidence for the class in red over it."""
    heat = np.maximum(evidence, 0)
    heat = heat / max(float(heat.max()), 1e-12)
    smooth = Image.fromarray(heat.astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC)
    share = 0.75 * np.asarray(smooth).clip(0, 1)[:, :, None]
    plain = np.asarray(picture.convert("L"), np.float32)[:, :, None]
    mixed = plain * (1 - share) + np.array([228.0, 26.0, 28.0]) * share
    return Image.fromarray(mixed.round().astype(np.uint8))
