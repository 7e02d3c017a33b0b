"""The admin port: whether the process lives, whether it can serve, and its metrics; apart from the API's
ports.

/healthz answers as soon as the process runs, /readyz turns 200 when every configured model has an available
version, /metrics is Prometheus' page whatever --monitoring_config_file says.
"""

from collections.abc import Callable, MutableMapping
from typing import Any

from isthmus.serving.http_server import Application, Headers, Receive, Send, respond
from isthmus.serving.metrics import CONTENT_TYPE, Metrics

__all__ = ["admin_application"]

_TEXT: Headers = [(b"content-type", b"text/plain; charset=utf-8")]
_METRICS: Headers = [(b"content-type", CONTENT_TYPE)]


def admin_application(metrics: Metrics, missing_models: Callable[[], list[str] | None]) -> Application:
    """The application.

    Args:
        metrics: what /metrics shows.
        missing_models: names of the configured models without an available version; None before anything is
            configured.
    """

    async def application(scope: MutableMapping[str, Any], _receive: Receive, send: Send) -> None:
        path = scope["path"]
        if scope["method"] not in ("GET", "HEAD"):
            await respond(send, 405, b"only GET\n", _TEXT)
        elif path == "/healthz":
            await respond(send, 200, b"ok\n", _TEXT)
        elif path == "/readyz":
            status, text = _readiness(missing_models())
            await respond(send, status, text.encode(), _TEXT)
        elif path == "/metrics":
            await respond(send, 200, metrics.page().encode(), _METRICS)
        else:
            await respond(send, 404, b"/healthz, /readyz and /metrics are here\n", _TEXT)

    return application


def _readiness(missing: list[str] | None) -> tuple[int, str]:
    if missing is None:
        return 503, "starting\n"
    if missing:
        return 503, f"no version available of: {', '.join(missing)}\n"
    return 200, "ok\n"
