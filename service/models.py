"""The live set of models: each one proved itself before it got in."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from service.batcher import Batcher
from service.bundle.decision import Decider
from service.bundle.decode import Limits
from service.bundle.manifest import Variant
from service.bundle.preprocess import prepare
from service.bundle.repository import (
    Bundle,
    list_versions,
    read_bundle,
    read_golden,
    resolve,
    verify_files,
)
from service.cores import count_cores
from service.engine import Engine, Provider, has_provider
from service.errors import BundleError, ErrorCode, ProviderError, RequestError, SettingsError
from service.metrics import Metrics
from service.schedule import Lane
from service.settings import ProviderChoice, Settings, VariantChoice

_CPU_MAX_BATCH_VIEWS, _GPU_MAX_BATCH_VIEWS = 16, 64
_CPU_MAX_BATCH_DELAY_MS, _GPU_MAX_BATCH_DELAY_MS = 0.0, 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A bundle that proved itself on the engine that will serve it."""

    bundle: Bundle
    variant: Variant
    engine: Engine
    lane: Lane
    labels: tuple[str, ...]
    decider: Decider = field(init=False)

    def __post_init__(self) -> None:
        """Prepares what each answer is decided with."""
        manifest = self.bundle.manifest
        decider = Decider(manifest.decision, manifest.labels, manifest.groups)
        object.__setattr__(self, "decider", decider)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.bundle.manifest.name

    @property
    def version(self) -> int:
        """The model's version."""
        return self.bundle.manifest.version


class Models:
    """What can be asked for, by name and version. Lookups never touch the file system."""

    def __init__(self, models: Sequence[Model], default: str | None) -> None:
        """Makes the set.

        Args:
            models: Models that proved themselves.
            default: NAME or NAME@VERSION of a request that names none; with one model it is that.

        Raises:
            SettingsError: The default is not among the models.
        """
        self._by_reference: dict[str, Model] = {}
        for model in sorted(models, key=lambda model: model.version):
            self._by_reference[model.bundle.reference] = model
            self._by_reference[model.name] = model
        names = {model.name for model in models}
        self._default = default if default is not None or len(names) != 1 else names.pop()
        if self._default is not None and self._default not in self._by_reference:
            raise SettingsError(f"default model {self._default!r} is not among the served models")

    def __iter__(self) -> Iterator[Model]:
        """Every model once, by name and version."""
        references = sorted(ref for ref in self._by_reference if "@" in ref)
        return (self._by_reference[reference] for reference in references)

    def find(self, reference: str | None) -> Model:
        """Returns the model for NAME (its newest version), NAME@VERSION, or None (the default).

        Raises:
            RequestError: `model_not_found`, or `invalid_argument` when None has no meaning.
        """
        wanted = self._default if reference is None else reference
        if wanted is None:
            raise RequestError(
                ErrorCode.INVALID_ARGUMENT, "several models are served: name one of them"
            )
        model = self._by_reference.get(wanted)
        if model is None:
            raise RequestError(ErrorCode.MODEL_NOT_FOUND, "no such model or version is served")
        return model

    def is_default(self, model: Model) -> bool:
        """Whether a request that names no model gets this one."""
        return self._default is not None and self._by_reference[self._default] is model


def load_models(settings: Settings, metrics: Metrics, *, device: int) -> Models:
    """Loads and proves every model that the settings name.

    Args:
        settings: Which repository, models, provider and variant.
        metrics: Where loads are shown and failures counted.
        device: Index of this worker's GPU.

    Raises:
        StartError: The first model that cannot be served, and why, in one line.
    """
    repository = settings.model_repository
    references = settings.models or tuple(list_versions(repository))
    if not references:
        raise BundleError(f"no bundle in {repository}")
    models = []
    for reference in references:
        try:
            bundle = read_bundle(resolve(repository, reference))
            models.append(load_model(bundle, settings, device=device))
        except (BundleError, ProviderError):
            metrics.count_load_failure(reference)
            raise
    for model in models:
        metrics.show_model(
            model=model.name,
            version=model.version,
            variant=model.variant.precision,
            provider=model.engine.provider,
            digest=model.bundle.digest,
        )
    return Models(models, settings.default_model)


def load_model(bundle: Bundle, settings: Settings, *, device: int) -> Model:
    """Returns the model after its files, its shapes and its golden samples proved right.

    Raises:
        BundleError: Something about the bundle is not what its manifest says.
        ProviderError: It cannot run where the settings want it.
    """
    verify_files(bundle)
    engine, variant = _make_engine(bundle, settings, device)
    size = bundle.manifest.input
    if engine.input_size != (size.height, size.width):
        raise BundleError(
            f"{bundle.reference}: the graph's input is not {size.height}x{size.width}"
        )
    good_batch_views = engine.warm_up()
    _prove_golden(bundle, variant, engine)
    on_gpu = engine.provider == "cuda"
    delay_ms = _GPU_MAX_BATCH_DELAY_MS if on_gpu else _CPU_MAX_BATCH_DELAY_MS
    if settings.max_batch_delay_ms is not None:
        delay_ms = settings.max_batch_delay_ms
    max_batch_views = _max_batch_views(settings, on_gpu)
    logger.info(
        "%s (%s) proved itself on %s; batches of %d views pay",
        bundle.reference,
        variant.precision,
        engine.provider,
        good_batch_views,
    )
    return Model(
        bundle=bundle,
        variant=variant,
        engine=engine,
        lane=Lane(
            name=bundle.reference,
            run=engine.run,
            max_batch_views=max_batch_views,
            good_batch_views=min(good_batch_views, max_batch_views),
            max_delay_s=delay_ms / 1000,
        ),
        labels=tuple(label.name for label in bundle.manifest.labels),
    )


def make_batcher(models: Models, settings: Settings, metrics: Metrics) -> Batcher:
    """Returns the one batcher under all models, with as many threads as this machine deserves."""
    on_gpu = any(model.engine.provider == "cuda" for model in models)
    threads = settings.compute_threads
    if threads == 0:
        threads = max(1, count_cores() // settings.workers)
    batcher = Batcher(
        compute_threads=threads,
        device_threads=1 if on_gpu else 0,
        max_queue_views=settings.max_queue_views,
        max_queue_bytes=settings.max_queue_bytes,
        max_queue_decode_s=settings.max_queue_decode_s,
        max_model_share=settings.max_model_share,
        metrics=metrics,
    )
    for model in models:
        batcher.add_lane(model.lane)
    return batcher


def _max_batch_views(settings: Settings, on_gpu: bool) -> int:
    if settings.max_batch_views is not None:
        return settings.max_batch_views
    return _GPU_MAX_BATCH_VIEWS if on_gpu else _CPU_MAX_BATCH_VIEWS


def _provider_candidates(settings: Settings) -> list[Provider]:
    """Returns the providers to try, best first; with `require_gpu` nothing but CUDA will do."""
    if settings.require_gpu:
        return ["cuda"]
    match settings.provider:
        case ProviderChoice.AUTO:
            return ["cuda", "cpu"] if has_provider("cuda") else ["cpu"]
        case ProviderChoice.CUDA:
            return ["cuda", "cpu"]
        case ProviderChoice.OPENVINO:
            return ["openvino"]
        case ProviderChoice.CPU:
            return ["cpu"]


def _make_engine(bundle: Bundle, settings: Settings, device: int) -> tuple[Engine, Variant]:
    candidates = _provider_candidates(settings)
    for provider in candidates:
        variant = _choose_variant(bundle, settings.variant, provider)
        try:
            engine = Engine(
                bundle.folder / variant.file,
                provider=provider,
                device=device,
                max_batch_views=_max_batch_views(settings, provider == "cuda"),
            )
        except ProviderError as error:
            if provider == candidates[-1]:
                raise
            logger.warning("%s: %s; trying the next provider", bundle.reference, error)
        else:
            return engine, variant
    raise AssertionError("there is always a candidate")


def _choose_variant(bundle: Bundle, choice: VariantChoice, provider: Provider) -> Variant:
    if choice is VariantChoice.AUTO:
        half = bundle.variant("fp16") if provider == "cuda" else None
        variant = half if half is not None else bundle.variant("fp32")
    else:
        variant = bundle.variant(choice.value)
    if variant is None:
        wanted = "fp32" if choice is VariantChoice.AUTO else choice.value
        raise BundleError(f"{bundle.reference} has no {wanted} variant")
    return variant


def _prove_golden(bundle: Bundle, variant: Variant, engine: Engine) -> None:
    """Proves that golden images, through decode and engine, give the recorded answers."""
    limits = Limits(formats=("jpeg", "png", "webp", "gif", "bmp", "tiff"))
    for sample in read_golden(bundle).samples:
        data = (bundle.folder / sample.file).read_bytes()
        try:
            image = prepare(data, bundle.manifest.preprocess, limits=limits)
        except RequestError as error:
            raise BundleError(f"{bundle.reference}: {sample.file}: {error.detail}") from error
        probabilities = engine.run(image.views)[0]
        expected = np.asarray(sample.probabilities, np.float32)
        if probabilities.shape != expected.shape:
            raise BundleError(
                f"{bundle.reference}: the graph gives {probabilities.size} classes, "
                f"not {expected.size}"
            )
        difference = float(np.abs(probabilities - expected).max())
        # A NaN compares false, so the comparison asks for what is right.
        if not difference <= variant.golden_tolerance or probabilities.argmax() != sample.top[0]:
            raise BundleError(
                f"{bundle.reference} ({variant.precision}) does not reproduce {sample.file}: "
                f"off by {difference:.2g}, allowed {variant.golden_tolerance:.2g}"
            )
