"""`fivecrop probe`: asks the server of this machine whether it lives, or is ready."""

from __future__ import annotations

import http.client
import ssl

import click

from service.environment import load_settings
from service.errors import StartError
from service.ports import reachable_host

_TIMEOUT_S = 4.0


@click.command()
@click.option("--ready", is_flag=True, help="Ask whether requests should be sent to it.")
def probe(*, ready: bool) -> None:
    """Ask the server with this environment's settings whether it lives; exit 0 means that it does.

    For containers, which need no other program for their health check then.
    """
    settings = load_settings()
    address = reachable_host(settings.host), settings.http_port
    path = "/readyz" if ready else "/livez"
    if settings.tls_cert is None:
        connection = http.client.HTTPConnection(*address, timeout=_TIMEOUT_S)
    else:
        # It asks itself: a certificate for other names than this one's is no fault.
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(*address, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise StartError(f"port {settings.http_port} does not answer: {error}") from error
    finally:
        connection.close()
    if status != http.client.OK:
        raise StartError(f"{path} answers {status}")
