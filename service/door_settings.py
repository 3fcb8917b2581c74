"""The settings of who reaches a service: addresses, processes behind them, keys, TLS, origins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, NoDecode


class DoorSettings(BaseSettings):
    """Part of `Settings`."""

    host: str = Field("127.0.0.1", description="Address that HTTP and gRPC listen on.")
    http_port: int = Field(3000, ge=1, le=65535, description="Port of HTTP.")
    grpc_port: int = Field(3001, ge=1, le=65535, description="Port of gRPC.")
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="Worker processes. One is best on a CPU; on GPUs use at least one a device.",
    )

    api_keys: Path | None = Field(
        None,
        description="File of API key hashes, made by `fivecrop keys`; with one, everything but "
        "health and the documentation needs a key. Without one, nobody may administer.",
    )

    tls_cert: Path | None = Field(
        None,
        description="PEM file of the certificate chain for HTTP and gRPC, which then speak TLS "
        "only; a replaced file is used for the next connection.",
    )
    tls_key: Path | None = Field(
        None, description="PEM file of its private key, without a password."
    )
    grpc_client_ca: Path | None = Field(
        None,
        description="PEM file of who signs the certificates that clients of gRPC must then have "
        "(mutual TLS).",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated origins (https://HOST) whose pages may call the service from "
        "a browser; `*` is any, empty none.",
    )

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together")
        if self.grpc_client_ca is not None and self.tls_cert is None:
            raise ValueError("grpc_client_ca needs tls_cert and tls_key")
        return self
