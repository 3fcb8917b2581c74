"""What an operator ordered of the live models, in a file that outlives the server.

The version policy says what should serve by itself; orders are the exceptions to it: versions that
are loaded beside the policy's, versions or whole models that are kept out, version labels, and what
becomes of requests that name a model alone (`service/traffic_orders.py`).
Every worker, and every server on the same repository, reads the same file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.bundle.manifest import NAME_PATTERN
from service.errors import BundleError, tell_invalid
from service.traffic_orders import RolledBack, Shadow, Split, list_versions

ORDERS_FILE = ".orders.json"
# Starts with a letter, so that it is never a version; `latest` and `all` are words of policies.
LABEL_PATTERN = re.compile(r"(?!(?:latest|all)$)[a-z][a-z0-9._-]{0,31}")

Version = Annotated[int, Field(ge=1)]


class ModelOrders(BaseModel):
    """The orders for one model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    is_unloaded: bool = False
    loaded: frozenset[Version] = frozenset()
    unloaded: frozenset[Version] = frozenset()
    labels: dict[str, Version] = {}
    split: Split | None = None
    shadow: Shadow | None = None
    rolled_back: RolledBack | None = None

    def apply(self, chosen: set[int]) -> set[int]:
        """Returns the versions that should serve, given those that the policy chose.

        A version with a label serves for as long as it has it, one that a split or a shadow names
        for as long as it does.
        """
        if self.is_unloaded:
            return set()
        needed = {*self.labels.values(), *list_versions(self.split, self.shadow)}
        return (chosen | self.loaded | needed) - self.unloaded

    def keeps_out(self, version: int) -> bool:
        """Whether a version was unloaded, alone or with its whole model."""
        return self.is_unloaded or version in self.unloaded

    def load(self, version: int | None) -> Self:
        """Returns these orders with a version let in; None is whatever the policy chooses."""
        if version is None:
            return self._with(is_unloaded=False, unloaded=frozenset())
        return self._with(
            is_unloaded=False, loaded=self.loaded | {version}, unloaded=self.unloaded - {version}
        )

    def unload(self, version: int | None) -> Self:
        """Returns these orders with a version kept out, or the whole model with its labels."""
        if version is None:
            return self._with(
                is_unloaded=True, loaded=frozenset(), labels={}, split=None, shadow=None
            )
        return self._with(loaded=self.loaded - {version}, unloaded=self.unloaded | {version})

    def label(self, label: str, version: int | None) -> Self:
        """Returns these orders with a label on a version, or, for None, without the label."""
        labels = {name: at for name, at in self.labels.items() if name != label}
        if version is None:
            return self._with(labels=labels)
        return self._with(
            labels={**labels, label: version},
            is_unloaded=False,
            unloaded=self.unloaded - {version},
        )

    def direct(self, *, split: Split | None) -> Self:
        """Returns these orders with another split, or none; what went wrong before is history."""
        return self._with(split=split, rolled_back=None)

    def watch(self, *, shadow: Shadow | None) -> Self:
        """Returns these orders with another shadow, or none."""
        return self._with(shadow=shadow)

    def find(self, target: str) -> int | None:
        """Returns the version that a label or a number means; None when it means nothing."""
        return int(target) if target.isdecimal() else self.labels.get(target)

    def promote(self, target: str, stable: str) -> Self:
        """Returns these orders with the label `stable` on a target, and the trial of it over."""
        version = self.find(target)
        assert version is not None
        labels = {name: at for name, at in self.labels.items() if name != target}
        return self._with(
            labels={**labels, stable: version}, split=None, shadow=None, rolled_back=None
        )

    def roll_back(self, event: RolledBack) -> Self:
        """Returns these orders with a target out of the split, its label on what serves instead.

        Orders that changed meanwhile, so that the target is another version, are left as they are.
        """
        target, split = event.target, self.split
        if split is None or target not in split.shares or self.find(target) != event.version:
            return self
        shares = {name: share for name, share in split.shares.items() if name != target}
        labels = self.labels
        if target in labels:
            labels = {**labels, target: event.to_version}
        shadow = self.shadow
        return self._with(
            labels=labels,
            split=split.model_copy(update={"shares": shares}) if shares else None,
            shadow=None if shadow is not None and shadow.target == target else shadow,
            rolled_back=event,
        )

    def _with(self, **changes: object) -> Self:
        return self.model_copy(update=changes)


OrdersChange = Callable[[ModelOrders], ModelOrders]


class Orders(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}$")], ModelOrders] = {}

    def of(self, name: str) -> ModelOrders:
        """Returns the orders for a model; without any, nothing deviates from the policy."""
        return self.models.get(name, ModelOrders())

    def change(self, name: str, change: OrdersChange) -> Orders:
        """Returns these orders with those for one model changed."""
        models = {**self.models, name: change(self.of(name))}
        return Orders(models={key: one for key, one in models.items() if one != ModelOrders()})


class OrdersFile:
    """The file of orders: read whole, changed under a lock, replaced atomically."""

    def __init__(self, path: Path) -> None:
        """Names the file; it may not exist."""
        self._path = path

    def read(self) -> Orders:
        """Returns the orders; without a file there are none.

        Raises:
            BundleError: The file cannot be read or understood.
        """
        try:
            return Orders.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return Orders()
        except OSError as error:
            raise BundleError(f"{self._path.name}: {error.strerror}") from error
        except ValidationError as error:
            raise BundleError(tell_invalid(self._path.name, error)) from error

    def change(self, name: str, change: OrdersChange) -> None:
        """Changes the orders for one model, whatever other processes do meanwhile.

        Raises:
            BundleError: The file cannot be read, understood or written.
        """
        try:
            with self._locked():
                self._write(self.read().change(name, change))
        except OSError as error:
            raise BundleError(
                f"{self._path.name} cannot be written ({error.strerror}); "
                "FIVECROP_MODEL_ORDERS names a place for it"
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(
            self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, orders: Orders) -> None:
        handle, name = tempfile.mkstemp(prefix=self._path.name, dir=self._path.parent)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(orders.model_dump_json(indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(self._path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
