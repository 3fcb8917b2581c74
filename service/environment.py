"""What this process is told through its environment, and what it tells workers and libraries."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from service.errors import SettingsError
from service.settings import CLIENT_KEY, PREFIX, Settings


def load_settings(**overrides: object) -> Settings:
    """Returns the settings of this process, `overrides` first, then `FIVECROP_*` variables.

    pydantic-settings does not notice a misspelt variable by itself, so the names are checked here.

    Raises:
        SettingsError: A variable is unknown or a value is out of its bounds; one line.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {CLIENT_KEY}
    given = {n for n in os.environ if n.upper().startswith(PREFIX)} - known
    if unknown := sorted(n for n in given if not _is_service_link(n)):
        raise SettingsError(f"unknown setting {', '.join(unknown)}")
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        place = f"setting {PREFIX}{name.upper()}" if name else "settings"
        raise SettingsError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from error


def _is_service_link(name: str) -> bool:
    """Whether Kubernetes tells of another service, one that is called fivecrop-SOMETHING.

    Pods get NAME_SERVICE_HOST, NAME_SERVICE_PORT, NAME_PORT_3000_TCP and so on of each service of
    their namespace, unless the pod says `enableServiceLinks: false`.
    """
    links = (n.removesuffix("_SERVICE_HOST") for n in os.environ if n.endswith("_SERVICE_HOST"))
    return any(name.startswith((f"{link}_SERVICE_", f"{link}_PORT")) for link in links)


def opt_out_of_telemetry() -> None:
    """Keeps ONNX Runtime from reporting to its maker, and from a device id in the home folder.

    Since 1.31 it does both on Linux when it is imported, so this comes before that.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def worker_environment(settings: Settings, scratch: Path) -> dict[str, str]:
    """Returns the environment that gives a worker process exactly these settings.

    Paths become absolute, because a worker runs in another folder. What libraries read from the
    environment, and only when they are imported, is set here too.

    Args:
        settings: Of the worker.
        scratch: A folder that goes when the server ends.
    """
    environment = {n: v for n, v in os.environ.items() if not n.upper().startswith(PREFIX)}
    for name, value in settings:
        if value is not None:
            environment[PREFIX + name.upper()] = _format_value(value)
    # prometheus_client shares values between processes whenever this is set; one worker alone is
    # better off without, because then it can also show the metrics of its process.
    environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
    if settings.metrics_folder is not None:
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(settings.metrics_folder.absolute())
    # BentoML makes five folders under its home; by default in the home of the user.
    environment.setdefault("BENTOML_HOME", str(scratch.absolute() / "bentoml"))
    # gRPC's core writes lines of its own about what strangers send; its errors come as exceptions.
    environment.setdefault("GRPC_VERBOSITY", "NONE")
    # NumPy's BLAS is not used for anything here, yet would start a thread for each core.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    return environment


def _format_value(value: object) -> str:
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
