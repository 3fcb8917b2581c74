"""One model: a bundle that proved itself on the engine that will serve it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.bundle.decision import Decider
from service.bundle.decode import Limits
from service.bundle.manifest import GoldenSample, Variant
from service.bundle.preprocess import prepare
from service.bundle.repository import Bundle, read_card, read_golden, verify_files
from service.drift import Drift
from service.engine import Engine, Provider, blame, has_provider
from service.errors import BundleError, ErrorCode, GoldenError, ProviderError, RequestError
from service.schedule import Lane
from service.settings import ProviderChoice, Settings, VariantChoice

_CPU_MAX_BATCH_VIEWS, _GPU_MAX_BATCH_VIEWS = 16, 64
_CPU_MAX_BATCH_DELAY_MS, _GPU_MAX_BATCH_DELAY_MS = 0.0, 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A bundle that proved itself on the engine that will serve it.

    Attributes:
        bundle: Where it came from.
        variant: The file of the bundle that runs.
        engine: What runs it.
        lane: Its place in the batcher.
        labels: Names of the classes, by class id.
        decider: What its answers are decided with.
        drift: How far its latest answers are from validation; None if its bundle does not know.
        load: What tells this load from any other, be it of the same bundle.
        memory_bytes: What it is counted with against the memory budget.
        card: Its model card, in Markdown.
    """

    bundle: Bundle
    variant: Variant
    engine: Engine
    lane: Lane
    labels: tuple[str, ...]
    memory_bytes: int = 0
    card: str | None = None
    decider: Decider = field(init=False)
    drift: Drift | None = field(init=False)
    load: object = field(init=False, default_factory=object)

    def __post_init__(self) -> None:
        """Prepares what each answer is decided with."""
        manifest = self.bundle.manifest
        decider = Decider(manifest.decision, manifest.labels, manifest.groups)
        object.__setattr__(self, "decider", decider)
        drift = None if manifest.reference is None else Drift(manifest.reference)
        object.__setattr__(self, "drift", drift)

    def need_output(self, name: str) -> tuple[str]:
        """Returns the name of an output that the graph has.

        Raises:
            RequestError: `invalid_argument`: it has none of that name.
        """
        if not self.bundle.manifest.has_output(name):
            raise RequestError(ErrorCode.INVALID_ARGUMENT, f"this model has no {name}")
        return (name,)

    def watched_outputs(self) -> tuple[str, ...]:
        """Returns the outputs that the next answer should bring for its drift to be seen."""
        watches = self.drift is not None and self.drift.wants_embedding
        return ("embedding",) if watches else ()

    @property
    def name(self) -> str:
        """The model's name."""
        return self.bundle.manifest.name

    @property
    def version(self) -> int:
        """The model's version."""
        return self.bundle.manifest.version


def load_model(
    bundle: Bundle,
    settings: Settings,
    *,
    device: int,
    admit: Callable[[int], None] = lambda _: None,
) -> Model:
    """Returns the model after its files, its shapes and its golden samples proved right.

    Args:
        bundle: The bundle.
        settings: Provider, variant and batches.
        device: Index of the GPU.
        admit: Called with the bytes of memory that the model needs before it takes them; raises
            when they are not to be had.

    Raises:
        BundleError: Something about the bundle is not what its manifest says.
        ProviderError: It cannot run where the settings want it, or the machine cannot run it now.
    """
    verify_files(bundle)
    engine, variant = make_engine(bundle, settings, device=device, admit=admit)
    size = bundle.manifest.input
    if engine.input_size != (size.height, size.width):
        raise BundleError(
            f"{bundle.reference}: the graph's input is not {size.height}x{size.width}"
        )
    with blame(bundle.reference):
        good_batch_views = engine.warm_up()
    _prove_outputs(bundle, engine)
    prove_golden(bundle, variant, engine)
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
            run_outputs=engine.run_outputs,
            max_batch_views=max_batch_views,
            good_batch_views=min(good_batch_views, max_batch_views),
            max_delay_s=delay_ms / 1000,
        ),
        labels=tuple(label.name for label in bundle.manifest.labels),
        memory_bytes=estimate_memory(bundle, variant, max_batch_views),
        card=read_card(bundle),
    )


def estimate_memory(bundle: Bundle, variant: Variant, max_batch_views: int) -> int:
    """Returns about how many bytes of memory a variant takes once it has run its largest batch.

    Measured on three networks (docs/decisions.md): weights take three times their file, and the
    activations of a view up to 16 times its input as floats. An estimate and not a measurement, so
    that whether a model fits depends neither on its neighbours nor on the traffic.
    """
    size = bundle.manifest.input
    view_bytes = size.height * size.width * 3 * np.dtype(np.float32).itemsize
    return 3 * variant.bytes + 16 * max_batch_views * view_bytes


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


def make_engine(
    bundle: Bundle,
    settings: Settings,
    *,
    device: int = 0,
    admit: Callable[[int], None] = lambda _: None,
) -> tuple[Engine, Variant]:
    """Returns the engine of a bundle whose files are verified, and the variant that it runs.

    The arguments, and what is raised, are those of `load_model`.
    """
    candidates = _provider_candidates(settings)
    for provider in candidates:
        variant = _choose_variant(bundle, settings.variant, provider)
        max_batch_views = _max_batch_views(settings, provider == "cuda")
        admit(estimate_memory(bundle, variant, max_batch_views))
        try:
            engine = Engine(
                bundle.folder / variant.file,
                provider=provider,
                device=device,
                max_batch_views=max_batch_views,
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


def _prove_outputs(bundle: Bundle, engine: Engine) -> None:
    """Proves that the graph has every output of the manifest; golden samples ask for one alone."""
    views = np.zeros((1, *engine.input_size, 3), np.uint8)
    outputs = bundle.manifest.outputs
    with blame(bundle.reference):
        found = engine.run_outputs(views, [output.name for output in outputs])
    for output, values in zip(outputs, found, strict=True):
        if values.shape != (1, *output.shape):
            raise BundleError(
                f"{bundle.reference}: the graph's {output.name} has the shape "
                f"{list(values.shape[1:])}, not {list(output.shape)}"
            )


def prove_golden(
    bundle: Bundle, variant: Variant, engine: Engine, which: slice = slice(None)
) -> None:
    """Proves that golden images, through decode and engine, give the recorded answers.

    Raises:
        GoldenError: They do not.
        BundleError: They are no images, or the graph has other classes or cannot be run.
        ProviderError: The machine cannot run the graph now.
    """
    limits = Limits(formats=("jpeg", "png", "webp", "gif", "bmp", "tiff"))
    for sample in read_golden(bundle).samples[which]:
        data = (bundle.folder / sample.file).read_bytes()
        try:
            image = prepare(data, bundle.manifest.preprocess, limits=limits)
        except RequestError as error:
            raise BundleError(f"{bundle.reference}: {sample.file}: {error.detail}") from error
        with blame(bundle.reference):
            _compare(bundle, variant, sample, engine.run(image.views)[0])


def _compare(
    bundle: Bundle, variant: Variant, sample: GoldenSample, probabilities: NDArray[np.float32]
) -> None:
    expected = np.asarray(sample.probabilities, np.float32)
    if probabilities.shape != expected.shape:
        raise BundleError(
            f"{bundle.reference}: the graph gives {probabilities.size} classes, not {expected.size}"
        )
    difference = float(np.abs(probabilities - expected).max())
    # A NaN compares false, so the comparison asks for what is right.
    if not difference <= variant.golden_tolerance or probabilities.argmax() != sample.top[0]:
        raise GoldenError(
            f"{bundle.reference} ({variant.precision}) does not reproduce {sample.file}: "
            f"off by {difference:.2g}, allowed {variant.golden_tolerance:.2g}"
        )
