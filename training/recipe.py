"""A recipe: data, input, network and training of one reproducible run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from service.bundle.manifest import Normalisation, Preprocess
from training.recipe_fields import STRICT, Paths, PositiveInt, Share
from training.recipe_training import AugmentRecipe, AverageRecipe, OptimRecipe, TrainRecipe


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class DataRecipe:
    """Where the images and labels come from. Relative paths count from the working directory."""

    # parquet: columns `image {bytes}` and `label`. folder: a sub-folder a class. csv: columns
    # `file`, `label`, at will `group`. webdataset: a tar, or a folder of them. mnist: IDX, the file
    # of the images. cifar: a .bin, or the folder of them. torchvision: the folder that it keeps
    # `dataset` in; its own validation or test part is the validation. digits: built in.
    source: Literal[
        "parquet", "folder", "csv", "webdataset", "mnist", "cifar", "torchvision", "digits"
    ]
    train: Path | None = None
    # parquet, in place of `train` and `validation`: paths or URLs (fsspec) of shards, `*` stands
    # for anything. Row groups are read when they are needed, images shuffled among a few of them.
    train_shards: tuple[str, ...] = ()
    validation_shards: tuple[str, ...] = ()
    # torchvision: the name of a class of torchvision.datasets, as `Flowers102`.
    dataset: str | None = None
    is_download_allowed: bool = False
    # Without it, `validation_fraction` of the training images is kept aside, stratified by class.
    validation: Path | None = None
    # JSON list of names, or of objects with a `name`; needed for parquet and webdataset, whose
    # labels are numbers.
    classes: Path | None = None
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    # Images that belong together, as frames of a film, stay on one side of that split: a regular
    # expression that finds the name of the group in the file's path. A csv names it in `group`.
    group_pattern: str | None = None
    # Up to this share of images that cannot be read is left out, and listed in `unreadable.json`.
    max_unreadable_fraction: Share = 0.0
    # Not the training seed: every seed of a recipe is to be measured on the same images.
    split_seed: int = 0
    # memory: decoded once to uint8 [N, H, W, 3], for small images. stream: decoded each time they
    # are shown, cut at random out of the full picture.
    loading: Literal["memory", "stream"] = "memory"
    # Decode worker processes when streaming; 0 decodes between the steps.
    decode_workers: Annotated[int, Field(ge=0)] = 2
    # Only so many images, of each class its share, chosen by `split_seed`.
    train_images: PositiveInt | None = None
    validation_images: PositiveInt | None = None
    # By whose leave the images are used; copied into the model card.
    licence: str = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class InputRecipe:
    """What the network is shown: the served preprocessing, copied into the bundle as it stands."""

    preprocess: Preprocess
    # Of pixels scaled to [0, 1]; the exported graph does the same sum.
    normalisation: Normalisation


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class ModelRecipe:
    """Which network, as `seed:<name>`, `torchvision:<name>` or `timm:<name>`."""

    architecture: str
    # Start from the hub's weights; the classifier is made anew for our classes.
    pretrained: bool = False
    # Start from the weights of another run (its folder, or a .safetensors file), or from the mean
    # of several (model soups, arXiv 2203.05482); a classifier of other classes is made anew.
    weights: Paths = ()
    # Dropout before the classifier, and the share of residual branches left out (stochastic depth).
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # Put in the place of batch normalisation: `models.norm_layers` has them. synchronised: that of
    # the whole batch where several processes share it.
    norm: Literal[
        "default", "layer", "group", "instance", "batch_renorm", "synchronised", "none"
    ] = "default"
    # In place of the network's own: `models.initialise` has them.
    initialisation: Literal[
        "default",
        "xavier_uniform",
        "xavier_normal",
        "he_uniform",
        "he_normal",
        "lecun_normal",
        "truncated_normal",
        "orthogonal",
        "dirac",
    ] = "default"
    # Keyword arguments of the network's constructor.
    options: Mapping[str, int | float | str | bool] = Field(default_factory=dict)

    @property
    def has_weights(self) -> bool:
        """Whether training starts from what others learnt."""
        return self.pretrained or bool(self.weights)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Recipe:
    """One reproducible training run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataRecipe
    input: InputRecipe
    model: ModelRecipe
    augment: AugmentRecipe = Field(default_factory=AugmentRecipe)
    optim: OptimRecipe
    average: AverageRecipe = Field(default_factory=AverageRecipe)
    train: TrainRecipe
