"""A row of the catalogue of architectures."""

from collections.abc import Mapping
from dataclasses import dataclass, field

ImageOption = int | float | str | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A row of the catalogue.

    Attributes:
        name: `provider:name`, as `build_model` takes it.
        family: its heading.
        source: the paper or the code that it is from.
        parameters: learnable ones, auxiliary classifiers included where `options` ask for them.
        multiply_adds: of one image in evaluation mode.
        size: pixels a side of that image.
        classes: number of outputs.
        options: of the constructor, where they are not the default ones.
    """

    name: str
    family: str
    source: str
    parameters: int
    multiply_adds: int
    size: int = 224
    classes: int = 1000
    options: Mapping[str, ImageOption] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name, and the options if there are any."""
        return " ".join((self.name, *(f"{key}={value}" for key, value in self.options.items())))


Row = tuple[str, int, int] | tuple[str, int, int, Mapping[str, ImageOption]]


def family(
    heading: str, source: str, *rows: Row, size: int = 224, classes: int = 1000
) -> tuple[Architecture, ...]:
    """Return rows (name, parameters, multiply-adds, options) under one heading."""
    return tuple(
        Architecture(
            name=row[0],
            family=heading,
            source=source,
            parameters=row[1],
            multiply_adds=row[2],
            size=size,
            classes=classes,
            options=row[3] if len(row) == 4 else {},
        )
        for row in rows
    )
