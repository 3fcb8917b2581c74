"""The layers of a network as a table: text to read, JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.layer_trace import LayerRow

# Activations are counted in float32.
_VALUE_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTable:
    """The layers of one network, for one image, and what they come to.

    Attributes:
        architecture: its name.
        rows: in the order they run, the input first.
        unused_parameters: of layers that only training uses, as auxiliary classifiers.
    """

    architecture: str
    rows: Sequence[LayerRow]
    unused_parameters: int = 0

    @property
    def parameters(self) -> int:
        """Of the layers that ran."""
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        """Of convolutions and matrix products."""
        return sum(row.multiply_adds for row in self.rows)

    @property
    def values(self) -> int:
        """Numbers that a forward pass makes and training keeps, the input among them."""
        return sum(row.values for row in self.rows)

    def to_json(self) -> str:
        """Return one JSON object: `layers`, each with the columns of the CSV, and `total`."""
        total = {
            "parameters": self.parameters,
            "unused_parameters": self.unused_parameters,
            "multiply_adds": self.multiply_adds,
            "activation_values": self.values,
            "activation_bytes": self.values * _VALUE_BYTES,
        }
        layers = [_describe(row) for row in self.rows]
        document = {"architecture": self.architecture, "layers": layers, "total": total}
        return json.dumps(document, indent=1)

    def to_csv(self) -> str:
        """Return a line a layer; pairs are height x width."""
        out = io.StringIO()
        described = [_describe(row) for row in self.rows]
        writer = csv.DictWriter(out, fieldnames=list(described[0]), lineterminator="\n")
        writer.writeheader()
        for one in described:
            writer.writerow({key: _cell(value) for key, value in one.items()})
        return out.getvalue().rstrip("\n")

    def to_text(self) -> str:
        """Return an aligned table, and the totals."""
        lines = [_TITLES, *(_text_cells(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(_TITLES))]
        # Names to the left, numbers to the right.
        aligned = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        unused = f" ({self.unused_parameters:,} more in training)" if self.unused_parameters else ""
        megabytes = self.values * _VALUE_BYTES / 1e6
        return "\n".join(
            (
                *aligned,
                f"parameters {self.parameters:,}{unused}",
                f"multiply-adds {self.multiply_adds:,}",
                f"activations {self.values:,} values, {megabytes:,.1f} MB in float32",
            )
        )


_TITLES = (
    *("layer", "kind", "kernel", "stride", "padding", "output"),
    *("sees", "every", "from", "parameters", "mult-adds", "values"),
)


def _describe(row: LayerRow) -> dict[str, Any]:
    windows, fields = row.windows, row.fields
    return {
        "layer": row.path,
        "kind": row.kind,
        "kernel": None if windows is None else [window.kernel for window in windows],
        "stride": None if windows is None else [window.stride for window in windows],
        "padding": None if windows is None else [window.padding for window in windows],
        "dilation": None if windows is None else [window.dilation for window in windows],
        "output_shape": list(row.shape),
        "field_size": [_plain(field.size) for field in fields],
        "field_stride": [_plain(field.stride) for field in fields],
        "field_offset": [_plain(field.offset) for field in fields],
        "parameters": row.parameters,
        "multiply_adds": row.multiply_adds,
        "activation_values": row.values,
        "activation_bytes": row.values * _VALUE_BYTES,
    }


def _text_cells(row: LayerRow) -> tuple[str, ...]:
    one = _describe(row)
    pairs = ("kernel", "stride", "padding", "output_shape")
    fields = ("field_size", "field_stride", "field_offset")
    sums = ("parameters", "multiply_adds", "activation_values")
    return (
        row.path or "-",
        row.kind,
        *(_short(one[key]) for key in (*pairs, *fields)),
        *(f"{one[key]:,}" for key in sums),
    )


def _short(values: list[float] | None) -> str:
    """A pair of equal numbers is one number; shapes are always whole."""
    if values is None:
        return ""
    is_square = len(values) == 2 and values[0] == values[1]
    return str(values[0]) if is_square else "x".join(map(str, values))


def _cell(value: Any) -> Any:
    return "x".join(map(str, value)) if isinstance(value, list) else value


def _plain(number: float) -> float:
    rounded = round(number, 3)
    return int(rounded) if rounded == int(rounded) else rounded
