"""The admin port: whether the process lives, whether it can serve, its metrics and its page; apart from the API's
ports.

/healthz answers as soon as the process runs, /readyz turns 200 when every configured model has an available
version, /metrics is Prometheus' page whatever --monitoring_config_file says, / is a page for people.
"""

import asyncio
import json
import logging
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from isthmus.serving import admin_page, routing
from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import RequestError
from isthmus.serving.http_body import ClientGoneError, TooLargeError, read_body
from isthmus.serving.http_server import Application, Headers, HttpServer, Receive, Send, respond
from isthmus.serving.metrics import CONTENT_TYPE, Metrics
from isthmus.serving.security import ApiTokens
from isthmus.serving.status import Code, http_status

if TYPE_CHECKING:
    from isthmus.serving.admin_api import AdminApi

__all__ = ["admin_application", "admin_server"]

logger = logging.getLogger(__name__)

_TEXT: Headers = [(b"content-type", b"text/plain; charset=utf-8")]
_JSON: Headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
_METRICS: Headers = [(b"content-type", CONTENT_TYPE)]
_MAX_IMAGE_BYTES = 32 * 2**20

Api = Callable[[], "AdminApi | None"]


def admin_application(
    metrics: Metrics,
    missing_models: Callable[[], list[str] | None],
    api: Api = lambda: None,
    tokens: ApiTokens | None = None,
) -> Application:
    """The application.

    Args:
        metrics: what /metrics shows.
        missing_models: names of the configured models without an available version; None before anything is
            configured.
        api: what the page shows; None as long as nothing is loaded.
        tokens: who may predict through the page.
    """

    async def application(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/predict" and scope["method"] == "POST":
            await respond(send, *await _prediction(scope, receive, api(), tokens), _JSON)
        elif scope["method"] not in ("GET", "HEAD"):
            await respond(send, 405, b"only GET\n", _TEXT)
        elif path == "/healthz":
            await respond(send, 200, b"ok\n", _TEXT)
        elif path == "/readyz":
            status, text = _readiness(missing_models())
            await respond(send, status, text.encode(), _TEXT)
        elif path == "/metrics":
            await respond(send, 200, metrics.page().encode(), _METRICS)
        elif path == "/status.json":
            await respond(send, 200, await _overview(api()), _JSON)
        elif path == "/manifest.json":
            await respond(send, *await _manifest(scope, api()), _JSON)
        elif path == "/":
            await respond(send, 200, admin_page.html(), _page_headers())
        else:
            await respond(
                send,
                404,
                b"/, /healthz, /readyz, /metrics, /status.json and /manifest.json are here\n",
                _TEXT,
            )

    return application


def _readiness(missing: list[str] | None) -> tuple[int, str]:
    if missing is None:
        return 503, "starting\n"
    if missing:
        return 503, f"no version available of: {', '.join(missing)}\n"
    return 200, "ok\n"


def _page_headers() -> Headers:
    return [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", admin_page.content_security_policy()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]


async def _overview(api: "AdminApi | None") -> bytes:
    overview = {"models": [], "latencies": []} if api is None else await asyncio.to_thread(api.overview)
    return json.dumps(overview).encode()


def _asked_model(scope: MutableMapping[str, Any]) -> tuple[str, int | None]:
    """The model and the version that a query names."""
    asked = parse_qs(scope["query_string"].decode("latin-1"))
    name, version = asked.get("model", [""])[0], asked.get("version", [""])[0]
    return name, routing.version_number(version) if version.isascii() and version.isdigit() else None


async def _manifest(scope: MutableMapping[str, Any], api: "AdminApi | None") -> tuple[int, bytes]:
    try:
        name, version = _asked_model(scope)
        if api is None or version is None:
            raise RequestError(Code.NOT_FOUND, "ask for ?model=NAME&version=NUMBER of a model that is served")
        return 200, await asyncio.to_thread(api.manifest, name, version)
    except RequestError as error:
        return http_status(error.code), json.dumps({"error": error.message}).encode()


async def _prediction(
    scope: MutableMapping[str, Any], receive: Receive, api: "AdminApi | None", tokens: ApiTokens | None
) -> tuple[int, bytes]:
    """Status and JSON of one prediction; errors look like the REST API's."""
    try:
        headers = dict(scope["headers"])
        if tokens is not None:
            tokens.check(headers.get(b"authorization"))
        if b"x-isthmus-admin" not in headers:
            # Another site's page cannot send this header without being asked for leave first.
            raise RequestError(Code.PERMISSION_DENIED, "send the header X-Isthmus-Admin: 1")
        if api is None:
            raise RequestError(Code.UNAVAILABLE, "starting")
        name, number = _asked_model(scope)
        image = await read_body(scope, receive, _MAX_IMAGE_BYTES)
        return 200, await asyncio.to_thread(api.predict_image, name, number, image)
    except RequestError as error:
        return http_status(error.code), json.dumps({"error": error.message}).encode()
    except TooLargeError:
        return 413, json.dumps({"error": f"the image exceeds {_MAX_IMAGE_BYTES} bytes"}).encode()
    except ClientGoneError:
        return 499, b""


def admin_server(config: ServingConfig) -> HttpServer:
    """The admin pages' port, bound at once.

    Raises:
        PortTakenError: or the address is unusable.
    """
    assert config.admin_port is not None
    return HttpServer(
        host=config.host,
        port=config.admin_port,
        what="the admin pages",
        flags="--admin_port and --host",
        drain_seconds=1,
    )
