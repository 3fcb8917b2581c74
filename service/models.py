"""What can be asked for: the models that serve now, by name, version and version label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from service.classification import ModelDescription
from service.combined_model import CombinedModel
from service.errors import ErrorCode, RequestError, SettingsError
from service.model import Model
from service.traffic import Traffic

# The label that NAME alone means, where a version has it.
STABLE = "stable"

VersionLabels = Mapping[str, Mapping[str, int]]
Served = TypeVar("Served", Model, CombinedModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """A version that is known and does not serve: `loading`, `draining` or `failed`, and why."""

    name: str
    version: int
    state: str
    reason: str | None = None
    is_combination: bool = False


class Models:
    """The table of what serves. A lookup is one dict access and never touches the file system.

    Attributes:
        unavailable: Versions that do not serve and that somebody may look for.
        combinations: What is asked instead of a model, by all its references.
        traffic: What is asked instead of the model of a reference, where a split is ordered.
    """

    def __init__(
        self,
        models: Sequence[Model],
        default: str | None,
        version_labels: VersionLabels | None = None,
        combinations: Sequence[CombinedModel] = (),
    ) -> None:
        """Makes the table.

        Args:
            models: Models that proved themselves.
            default: NAME, NAME@VERSION or NAME@LABEL of a request that names none; with one name
                it is that.
            version_labels: Versions by name and label.
            combinations: Those whose members are among the models.

        Raises:
            SettingsError: The default is not among the models.
        """
        self.unavailable: tuple[Unavailable, ...] = ()
        self.traffic: Mapping[str | None, Traffic] = {}
        self._default = default
        self.replace(models, version_labels or {}, combinations)
        known = self._by_reference.keys() | self.combinations.keys()
        if default is not None and models and None not in known:
            raise SettingsError(f"default model {default!r} is not among the served models")

    def replace(
        self,
        models: Sequence[Model],
        version_labels: VersionLabels,
        combinations: Sequence[CombinedModel] = (),
    ) -> None:
        """Lets exactly these models serve, from one lookup to the next.

        A label whose version is not among them has no meaning. A combination is the default only
        when it was chosen to be.
        """
        names = {model.name for model in models}
        default = self._default if self._default is not None or len(names) != 1 else names.pop()
        self._models = tuple(sorted(models, key=_by_version))
        self._by_reference = _make_table(self._models, version_labels, default)
        self.combinations = _make_table(
            sorted(combinations, key=_by_version), version_labels, self._default
        )
        self._version_labels = {
            (name, version): tuple(sorted(one for one, at in labels.items() if at == version))
            for name, labels in version_labels.items()
            for version in labels.values()
        }

    def direct(self, traffic: Mapping[str, Traffic]) -> None:
        """Lets each of these models, when it is asked for by its name alone, answer so."""
        by_reference: dict[str | None, Traffic] = dict(traffic.items())
        default = self._by_reference.get(None)
        if default is not None and self._by_reference[default.name] is default:
            is_by_name = self._default in (None, default.name)
            if is_by_name and default.name in traffic:
                by_reference[None] = traffic[default.name]
        self.traffic = by_reference

    def __iter__(self) -> Iterator[Model]:
        """Every model once, by name and version."""
        return iter(self._models)

    def find(self, reference: str | None) -> Model:
        """Returns the model for a reference.

        Args:
            reference: NAME (its stable version, or else its newest), NAME@VERSION, NAME@LABEL, or
                None (the default).

        Raises:
            RequestError: `model_not_found`, or `invalid_argument` when None has no meaning.
        """
        model = self._by_reference.get(reference)
        if model is None:
            for one in self.unavailable:
                if one.is_combination and reference in (one.name, f"{one.name}@{one.version}"):
                    raise RequestError(
                        ErrorCode.NOT_READY, one.reason or "the members of this model are loading"
                    )
            if reference in self.combinations:
                raise RequestError(
                    ErrorCode.INVALID_ARGUMENT,
                    "a model that is made of others takes no part in splits, shadows or promotions",
                )
            if reference is None and self._default is None and self._models:
                raise RequestError(
                    ErrorCode.INVALID_ARGUMENT,
                    "several models are served: name one (/v1/models, over gRPC the rpc Models, "
                    "lists them), or let the server have a default (--default-model)",
                )
            raise RequestError(
                ErrorCode.MODEL_NOT_FOUND,
                "no such model or version is served; /v1/models, over gRPC the rpc Models, lists "
                "those that are",
            )
        return model

    def get(self, reference: str) -> Model | None:
        """Returns the model for a reference as `find` knows them, or None."""
        return self._by_reference.get(reference)

    def is_default(self, model: Model | CombinedModel) -> bool:
        """Whether a request that names no model gets this one."""
        return self._by_reference.get(None) is model or self.combinations.get(None) is model

    def version_labels(self, model: Model | CombinedModel) -> tuple[str, ...]:
        """Returns the version labels that mean this model, by their names."""
        return self._version_labels.get((model.name, model.version), ())

    def describe(self, model: Model) -> ModelDescription:
        """Returns what clients and operators may know about a served model."""
        manifest = model.bundle.manifest
        measured = [m for m in manifest.metrics if m.variant == model.variant.precision]
        return ModelDescription(
            name=model.name,
            version=model.version,
            provider=model.engine.provider,
            variant=model.variant.precision,
            is_default=self.is_default(model),
            state="ready",
            classes=len(model.labels),
            input_height=manifest.input.height,
            input_width=manifest.input.width,
            resized_side=manifest.preprocess.resize.size,
            good_batch_views=model.lane.good_batch_views,
            max_batch_delay_ms=model.lane.max_delay_s * 1000,
            digest=model.bundle.digest,
            top1=measured[0].top1 if measured else None,
            labels=model.labels,
            decision=manifest.decision,
            memory_bytes=model.memory_bytes,
            version_labels=self.version_labels(model),
            card=model.card,
        )


def _by_version(model: Model | CombinedModel) -> tuple[str, int]:
    return model.name, model.version


def _make_table(
    ordered: Sequence[Served], version_labels: VersionLabels, default: str | None
) -> dict[str | None, Served]:
    """Returns the models by all their references; of one name the last one has NAME alone."""
    table: dict[str | None, Served] = {}
    for model in ordered:
        table[f"{model.name}@{model.version}"] = table[model.name] = model
    for name, by_label in version_labels.items():
        for label, version in by_label.items():
            if (labelled := table.get(f"{name}@{version}")) is None:
                continue
            table[f"{name}@{label}"] = labelled
            if label == STABLE:
                table[name] = labelled
    if default is not None and default in table:
        table[None] = table[default]
    return table
