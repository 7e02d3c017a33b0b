"""The URL grammar of TensorFlow Serving's REST API, as pure functions.

The two expressions are those of tensorflow_serving/model_servers/http_rest_api_util.cc. RE2's `\\d` is ASCII
only.
"""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote_to_bytes

from isthmus.serving.errors import RequestError
from isthmus.serving.status import Code

__all__ = ["ModelRef", "Route", "is_api_path", "parse", "version_number"]

_PREDICTION = re.compile(
    r"(?i:/v1/models/([^/:]+)(?:(?:/versions/([0-9]+))|(?:/labels/([^/:]+)))?:(classify|regress|predict))"
)
_STATUS = re.compile(
    r"(?i:/v1/models(?:/([^/:]+))?(?:(?:/versions/([0-9]+))|(?:/labels/([^/:]+)))?(?:/(metadata))?)"
)
_ANY = re.compile(r"(?i:/v1/.*)")
_MAX_INT64 = 2**63 - 1
_MAX_DIGITS = 19

Verb = Literal["predict", "classify", "regress", "status", "metadata"]

_VERBS: dict[str, Verb] = {"predict": "predict", "classify": "classify", "regress": "regress"}


@dataclass(frozen=True)
class ModelRef:
    """Which model, and which of its versions: by number, by label, or (neither given) the newest available
    one."""

    name: str
    version: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class Route:
    """What one HTTP request asks for."""

    verb: Verb
    model: ModelRef


def is_api_path(path: str) -> bool:
    """Whether the REST API answers this path at all; every other path is a plain 404."""
    return _ANY.fullmatch(path) is not None


def parse(method: str, path: str) -> Route:
    """The route of a request line.

    Args:
        method: HTTP method, upper case.
        path: the path as it was sent: undecoded, without the query.

    Raises:
        RequestError: INVALID_ARGUMENT `Malformed request: …`; `Failed to convert version: … to numeric.` when
            the version exceeds 64 bits; `Missing model name in request.`
    """
    malformed = RequestError(Code.INVALID_ARGUMENT, f"Malformed request: {method} {path}")
    if method == "POST":
        match = _PREDICTION.fullmatch(path)
    elif method == "GET":
        match = _STATUS.fullmatch(path)
    else:
        raise malformed
    if match is None:
        raise malformed
    name, version, label, last = match.groups()
    model = ModelRef(
        _decoded(name or ""),
        None if version is None else version_number(version),
        None if label is None else _decoded(label),
    )
    if method == "POST":
        # The expression ignores case, the dispatch behind it does not: `:PREDICT` is malformed.
        if last not in _VERBS:
            raise malformed
        return Route(_VERBS[last], model)
    if not model.name:
        raise RequestError(Code.INVALID_ARGUMENT, "Missing model name in request.")
    return Route("metadata" if last == "metadata" else "status", model)


def version_number(digits: str) -> int:
    """The version that ASCII digits name, however many: Python's int() takes 4,300 and no more.

    Raises:
        RequestError: INVALID_ARGUMENT `Failed to convert version: … to numeric.` beyond 64 bits.
    """
    significant = digits.lstrip("0") or "0"
    version = int(significant) if len(significant) <= _MAX_DIGITS else None
    if version is None or version > _MAX_INT64:
        raise RequestError(Code.INVALID_ARGUMENT, f"Failed to convert version: {digits} to numeric.")
    return version


def _decoded(part: str) -> str:
    return unquote_to_bytes(part).decode("utf-8", "surrogateescape")
