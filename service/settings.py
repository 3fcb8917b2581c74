"""Every setting of a running service, read once from `FIVECROP_*` variables."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from service.bundle.structure import Limits
from service.capture_settings import CaptureSettings
from service.door_settings import DoorSettings

PREFIX = "FIVECROP_"
# Not a setting: the key that `fivecrop models` uses.
CLIENT_KEY = f"{PREFIX}KEY"


class ProviderChoice(StrEnum):
    """Where models run; `auto` takes CUDA when it works and the CPU otherwise."""

    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"
    OPENVINO = "openvino"


class VariantChoice(StrEnum):
    """Which file of a bundle runs; `auto` takes fp16 on CUDA when the bundle has it, else fp32."""

    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Settings(CaptureSettings, DoorSettings):
    """What an operator may choose. Facts of a model are never settings: its bundle holds them."""

    # An empty variable is how a ConfigMap or a compose file says "not set".
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid"
    )

    model_repository: Path | str = Field(
        Path("exported_models"),
        description="Folder of bundles, NAME/VERSION/bundle.json, or the URL of one: "
        "s3://, gs://, https:// and what else fsspec opens.",
    )
    model_cache: Path | None = Field(
        None, description="Folder for bundles from a URL; by default ~/.cache/fivecrop."
    )
    model_cache_mib: int = Field(
        10_240,
        ge=1,
        description="Largest size of that folder, in MiB, of all servers that share it; bundles "
        "used least recently make room for new ones, never one that serves.",
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated NAME, NAME@VERSION, NAME@latest:N or NAME@all to serve; "
        "empty serves every model of the repository.",
    )
    version_policy: str = Field(
        "latest:1",
        pattern="^(all|latest:[1-9][0-9]{0,8})$",
        description="Versions to serve of a model that no other policy is given for: "
        "latest:N (the newest N that prove themselves) or all.",
    )
    model_memory_mib: int | None = Field(
        None,
        ge=1,
        description="Memory for models, in MiB, by an estimate of each; one that does not fit "
        "beside those that are loaded is refused.",
    )
    model_watch: bool = Field(
        False,
        description="Serve what is published to the repository without being asked to.",
    )
    model_poll_s: float = Field(
        30.0, ge=0.1, le=86_400, description="Seconds until the watch looks without being told to."
    )
    model_orders: Path | None = Field(
        None,
        description="File that keeps what an operator loaded, unloaded and labelled; "
        "by default .orders.json in the repository, or for a URL a file in the cache.",
    )
    sticky_header: str = Field(
        "x-sticky-key",
        pattern="^[a-z][a-z0-9-]{0,63}$",
        description="Header, or gRPC metadata, whose value decides which version answers while the "
        "traffic of a model is split; requests without it are split by chance.",
    )
    default_model: str | None = Field(
        None, description="Model of a request that names none; may be left out when one is served."
    )
    provider: ProviderChoice = Field(
        ProviderChoice.AUTO, description="ONNX Runtime execution provider."
    )
    require_gpu: bool = Field(
        False, description="Refuse to start, instead of serving on the CPU, when CUDA is missing."
    )
    variant: VariantChoice = Field(
        VariantChoice.AUTO, description="Precision variant of each bundle to run."
    )
    compute_threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="Threads that decode images (and, on a CPU, run models); "
        "0 takes the cores of this process divided by the workers.",
    )

    max_batch_views: int | None = Field(
        None, ge=1, le=4096, description="Views in one batch; by default 16 on a CPU, 64 on a GPU."
    )
    max_batch_delay_ms: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="Longest wait of an idle engine for a fuller batch, in milliseconds; "
        "by default 0 on a CPU, 2 on a GPU.",
    )
    max_queue_views: int = Field(
        512, ge=1, le=1_000_000, description="Views admitted and not yet answered; more is refused."
    )
    max_queue_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1,
        description="Encoded bytes admitted and not yet answered; more is refused.",
    )
    max_queue_decode_s: float = Field(
        30.0,
        gt=0,
        description="Seconds of decoding, judged by the images' headers, admitted and not yet "
        "done; more is refused.",
    )
    max_request_decode_s: float = Field(
        1.0,
        gt=0,
        description="Seconds of decoding, judged by the images' headers, of one request; images "
        "beyond are refused, but never the first.",
    )
    max_model_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Largest share of the queue that one model may hold while several are served.",
    )
    max_inflight_requests: int = Field(
        4096,
        ge=1,
        description="Requests over HTTP, and as many over gRPC, being received or answered; "
        "more is refused.",
    )
    max_inflight_bytes: int = Field(
        512 * 1024 * 1024,
        ge=1,
        description="Bytes of their bodies, for HTTP and gRPC apart; more is refused.",
    )
    rate_limit_per_s: float | None = Field(
        None,
        gt=0,
        description="Images a second that one API key may have classified by each worker; one that "
        "takes more than 10 ms to decode, and each view of an augmented one, counts as more.",
    )
    rate_limit_burst: float = Field(
        64.0, ge=1, description="Images that an API key which was silent may send at once."
    )
    default_timeout_ms: float = Field(
        10_000, gt=0, le=600_000, description="Deadline of a request that sets none."
    )

    max_body_bytes: int = Field(
        10 * 1024 * 1024,
        ge=1,
        description="Largest HTTP body or gRPC message, in bytes; it is not read further.",
    )
    max_request_images: int = Field(32, ge=1, le=1024, description="Images in one HTTP request.")
    max_image_pixels: int = Field(
        40_000_000, ge=1, description="Largest width times height of an image; checked undecoded."
    )
    max_image_side: int = Field(16_384, ge=1, description="Largest width or height, in pixels.")
    max_image_aspect: int = Field(
        100, ge=1, description="Longer side over the shorter one; resizing grows both."
    )
    max_image_frames: int = Field(
        64, ge=1, description="Frames that an animated PNG declares; only the first is decoded."
    )
    max_jpeg_scans: int = Field(
        100, ge=1, description="Scans of a progressive JPEG; each one costs a pass over the image."
    )
    max_jpeg_segments: int = Field(
        4_096, ge=1, description="Segments of a JPEG before its end; each one costs microseconds."
    )
    max_png_chunks: int = Field(
        4_096, ge=1, description="Chunks of a PNG; each one costs microseconds."
    )
    image_formats: Annotated[tuple[str, ...], NoDecode] = Field(
        ("jpeg", "png", "webp"),
        description="Comma-separated formats that are decoded; also known: gif, bmp, tiff.",
    )
    max_header_bytes: int = Field(
        16_384, ge=1024, le=1_048_576, description="Largest request line and headers of HTTP."
    )
    header_timeout_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Longest time for a client to send the headers of an HTTP request, to end a "
        "TLS handshake, or to open a gRPC connection, in seconds.",
    )
    write_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Seconds that a client may take to read an answer of HTTP or of a gRPC stream.",
    )
    grpc_max_connection_age_s: float | None = Field(
        None,
        gt=0,
        le=86_400,
        description="Seconds after which a gRPC client is asked to connect anew; its connection is "
        "closed when what it has begun is over, or the write timeout is. By default never.",
    )
    request_read_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="Longest time for a client to send its body, in seconds."
    )

    pixel_models: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated names of models whose v2 metadata tells of their input as "
        "pixels (UINT8, NHWC) instead of files, for clients that resize by it; each takes both.",
    )
    torchserve: bool = Field(
        False, description="Also answer TorchServe's clients: /ping and /predictions/MODEL."
    )
    tfserving: bool = Field(
        False,
        description="Also answer clients of TensorFlow Serving and KServe v1: "
        "/v1/models/MODEL:predict, and /v1/models/MODEL and / in their form instead of ours.",
    )
    sagemaker: bool = Field(
        False, description="Also answer Amazon SageMaker: /ping and /invocations."
    )

    playground: bool = Field(True, description="Answer / with a page to try the models in.")
    response_cache_bytes: int = Field(
        0, ge=0, description="Answers remembered in each worker, in bytes; 0 remembers none."
    )
    keep_alive_s: int = Field(
        75,
        ge=1,
        le=3600,
        description="Seconds that an idle HTTP connection is kept open; longer than the load "
        "balancer in front keeps its own, so that it never sends into a closed one.",
    )
    drain_s: float = Field(
        5.0,
        ge=0,
        le=600,
        description="Seconds after SIGTERM that requests are still accepted while readiness says "
        "no; at least two probe periods of the load balancer.",
    )
    shutdown_grace_s: float = Field(
        25.0, ge=0, le=600, description="Seconds for requests in flight to finish after that."
    )
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="text for people, json (an object a line) for log collectors."
    )
    access_log: bool = Field(
        False,
        description="Log a line for each request: its id, model, version, code and timings.",
    )
    traces_endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="Collector that OpenTelemetry traces are sent to (OTLP over HTTP, usually "
        "http://HOST:4318); needs the extra `traces`.",
    )
    traces_sample_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the traces begun here that is kept; a client's decision is followed.",
    )
    metric_labels: int = Field(
        200,
        ge=0,
        description="Class labels counted one by one in fivecrop_predictions_total; "
        "later ones are counted as `other`.",
    )
    metrics_folder: Path | None = Field(
        None,
        description="Folder that several workers share their metrics in; "
        "`fivecrop serve` makes a fresh one, in this one when it is set.",
    )
    supervisor_fd: int | None = Field(
        None,
        ge=3,
        description="Open file on which a worker tells `fivecrop serve` that it is ready; "
        "set by that command, never by hand.",
    )

    @field_validator("model_repository", mode="plain")
    @classmethod
    def _split_repositories(cls, value: Any) -> Path | str:
        # A Path would make s3:/bucket of s3://bucket.
        return value if isinstance(value, str) and "://" in value else Path(value)

    @field_validator("models", "cors_origins", "image_formats", "pixel_models", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    def image_limits(self) -> Limits:
        """Returns what an image may cost."""
        return Limits(
            max_pixels=self.max_image_pixels,
            max_side=self.max_image_side,
            max_aspect=self.max_image_aspect,
            max_frames=self.max_image_frames,
            max_jpeg_scans=self.max_jpeg_scans,
            max_jpeg_segments=self.max_jpeg_segments,
            max_png_chunks=self.max_png_chunks,
            formats=self.image_formats,
        )

    @field_validator("image_formats")
    @classmethod
    def _check_formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = {"jpeg", "png", "webp", "gif", "bmp", "tiff"}
        if not value or not set(value) <= known:
            raise ValueError(f"expected some of {', '.join(sorted(known))}")
        return value
