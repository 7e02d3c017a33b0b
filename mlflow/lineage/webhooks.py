"""MLflow's registry webhooks: who is told of a move, and a receiver that acts on it.

MLflow signs each delivery (HMAC-SHA256 over delivery id, timestamp and body). The receiver answers only to what is
signed with its secret, recent, and not a repetition, and runs one command for each event, one after the other.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import queue
import shlex
import subprocess
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from isthmus.lineage.errors import LineageError

if TYPE_CHECKING:
    from mlflow.entities.webhook import Webhook

log = logging.getLogger(__name__)

EVENTS = (
    "registered_model.created",
    "model_version.created",
    "model_version_tag.set",
    "model_version_tag.deleted",
    "model_version_alias.created",
    "model_version_alias.deleted",
)
"""What MLflow tells of its registry. A promotion and a rollback are model_version_alias.created."""

FRESH_S = 300
"""A delivery older than this is refused, as Standard Webhooks advises."""

REMEMBERED = 10_000
LARGEST_BODY = 1 << 20
FIELDS = ("name", "version", "alias", "key", "value")
"""Of an event's data, what a command may name in braces."""


def add(name: str, *, url: str, events: Sequence[str], secret: str) -> Webhook:
    """Have MLflow tell `url` of these events; a webhook of this name is replaced. Call `tracking.connect` first.

    Raises LineageError for an unknown event, and for a URL that MLflow refuses (it wants https and a public address;
    the server's environment variables MLFLOW_WEBHOOK_ALLOWED_SCHEMES and MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS widen that).
    """
    import mlflow

    for event in events:
        if event not in EVENTS:
            raise LineageError(f"{event!r} is no event of the registry; allowed: {', '.join(EVENTS)}")
    if len(secret) < 16:
        raise LineageError("the webhook's secret is shorter than 16 characters; take a random one")
    client = mlflow.MlflowClient()
    try:
        remove(name)
        webhook: Webhook = client.create_webhook(
            name=name, url=url, events=[str(event) for event in events], secret=secret
        )
    except mlflow.MlflowException as problem:
        raise LineageError(f"MLflow refused the webhook {name}: {str(problem).splitlines()[0]}") from problem
    return webhook


def registered() -> list[Webhook]:
    """All webhooks of the store."""
    import mlflow

    client, found, token = mlflow.MlflowClient(), list[Any](), None
    while True:
        page = client.list_webhooks(page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def remove(name: str) -> bool:
    """Forget the webhook of this name; whether there was one."""
    import mlflow

    ids = [webhook.webhook_id for webhook in registered() if webhook.name == name]
    for webhook_id in ids:
        mlflow.MlflowClient().delete_webhook(webhook_id)
    return bool(ids)


def signature(secret: str, *, delivery: str, timestamp: str, body: bytes) -> str:
    """What MLflow writes into X-MLflow-Signature: `v1,` and the base64 of the HMAC."""
    signed = f"{delivery}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()


@dataclass(frozen=True, kw_only=True)
class Event:
    """One delivery that was believed."""

    kind: str
    """Such as model_version_alias.created."""

    data: Mapping[str, str]
    """name, version, alias, ... as MLflow gives them."""

    delivery: str


@dataclass(kw_only=True)
class Receiver:
    """Listens for deliveries and runs a command for each.

    `with Receiver(...) as receiver: receiver.wait()` serves until it is stopped.
    """

    secret: str
    commands: Mapping[str, Sequence[str]]
    """By event kind: the command's words, in which {name}, {version}, {alias}, {key}, {value} stand for the event's."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: any free one; see `url`."""

    done: list[tuple[Event, int]] = field(default_factory=list)
    """Every event that was acted on, and its command's exit code."""

    def __post_init__(self) -> None:
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._server = ThreadingHTTPServer((self.host, self.port), _handler(self))
        self._threads = [
            threading.Thread(target=self._server.serve_forever, daemon=True),
            threading.Thread(target=self._work, daemon=True),
        ]

    @property
    def url(self) -> str:
        """Where MLflow is to deliver."""
        return f"http://{self.host}:{self._server.server_address[1]}/"

    def __enter__(self) -> Receiver:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take no more, finish what was taken."""
        self._server.shutdown()
        self._server.server_close()
        self._events.put(None)
        for thread in self._threads:
            thread.join()

    def wait(self) -> None:
        """Until the process is told to stop (KeyboardInterrupt, SystemExit)."""
        self._threads[0].join()

    def take(self, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
        """The answer to one delivery: (HTTP status, text). What is believed is acted on later, in order."""
        # A proxy may write names in small letters.
        said = {name.lower(): value for name, value in headers.items()}
        delivery, timestamp, given = (
            said.get(f"x-mlflow-{name}", "") for name in ("delivery-id", "timestamp", "signature")
        )
        expected = signature(self.secret, delivery=delivery, timestamp=timestamp, body=body)
        if not hmac.compare_digest(given.encode(), expected.encode()):
            return 401, "the signature is not one of this secret"
        if not timestamp.isdigit() or abs(time.time() - int(timestamp)) > FRESH_S:
            return 401, f"the delivery is older than {FRESH_S} s"
        try:
            content = json.loads(body)
            kind = f"{content['entity']}.{content['action']}"
            data = {str(key): str(value) for key, value in content["data"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return 400, "the body is no event"
        with self._lock:
            if delivery in self._seen:
                return 200, "known already"
            self._seen[delivery] = None
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        if kind not in self.commands:
            return 200, "nothing to do"
        self._events.put(Event(kind=kind, data=data, delivery=delivery))
        return 202, "accepted"

    def _work(self) -> None:
        while (event := self._events.get()) is not None:
            words = [_filled(word, event.data) for word in self.commands[event.kind]]
            log.info("%s: %s", event.kind, shlex.join(words))
            try:
                code = subprocess.run(words, stdin=subprocess.DEVNULL, check=False).returncode
            except OSError as problem:
                log.error("%s: %s", words[0], problem.strerror)
                code = 127
            if code:
                log.warning("%s of %s ended with exit code %d", words[0], event.kind, code)
            self.done.append((event, code))


def parse(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """(event, command line) pairs as `Receiver.commands`. Raises LineageError for what cannot be one."""
    commands = {}
    for event, line in pairs:
        if event not in EVENTS:
            raise LineageError(f"{event!r} is no event of the registry; allowed: {', '.join(EVENTS)}")
        try:
            words = shlex.split(line)
        except ValueError as problem:
            raise LineageError(f"{line!r} is no command line: {problem}") from problem
        if not words:
            raise LineageError(f"the command of {event} is empty")
        commands[event] = words
    return commands


def _filled(word: str, data: Mapping[str, str]) -> str:
    """No shell, no format strings: what an event says stays one word."""
    for key in FIELDS:
        word = word.replace("{" + key + "}", data.get(key, ""))
    return word


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            """One delivery."""
            length = self.headers.get("Content-Length", "")
            if not length.isdigit() or int(length) > LARGEST_BODY:
                self.send_error(413)
                return
            status, text = receiver.take(dict(self.headers.items()), self.rfile.read(int(length)))
            answer = json.dumps({"message": text}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: object) -> None:
            log.debug(format, *arguments)

    return Handler
