"""The URL grammar as a function; conformance/test_rest_urls.py asks it of a server."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.serving.errors import RequestError
from isthmus.serving.routing import ModelRef, Route, is_api_path, parse


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("POST", "/v1/models/m:predict", Route("predict", ModelRef("m"))),
        ("POST", "/v1/models/m:classify", Route("classify", ModelRef("m"))),
        ("POST", "/V1/models/m/versions/007:regress", Route("regress", ModelRef("m", 7))),
        ("POST", "/v1/models/a%2Fb/labels/x%20y:predict", Route("predict", ModelRef("a/b", label="x y"))),
        ("GET", "/v1/models/m", Route("status", ModelRef("m"))),
        ("GET", "/v1/models/m/METADATA", Route("status", ModelRef("m"))),
        ("GET", "/v1/models/m/versions/3/metadata", Route("metadata", ModelRef("m", 3))),
        ("GET", "/v1/models/m/labels/l", Route("status", ModelRef("m", label="l"))),
    ],
)
def test_route(method: str, path: str, route: Route) -> None:
    assert parse(method, path) == route


def test_version_beyond_64_bits() -> None:
    with pytest.raises(RequestError, match=f"Failed to convert version: {2**63} to numeric."):
        parse("GET", f"/v1/models/m/versions/{2**63}")


def test_version_of_thousands_of_digits() -> None:
    digits = "9" * 5000
    with pytest.raises(
        RequestError, match=f"^INVALID_ARGUMENT: Failed to convert version: {digits} to numeric.$"
    ):
        parse("GET", f"/v1/models/m/versions/{digits}")
    assert parse("GET", f"/v1/models/m/versions/{'0' * 5000}7").model.version == 7


def test_arabic_digits_are_no_version() -> None:
    with pytest.raises(RequestError, match="Malformed request: GET /v1/models/m/versions/٣"):
        parse("GET", "/v1/models/m/versions/٣")


@given(st.sampled_from(["GET", "POST", "PUT"]), st.text())
def test_every_path_is_a_route_or_a_request_error(method: str, path: str) -> None:
    with contextlib.suppress(RequestError):
        assert isinstance(parse(method, path), Route)


@pytest.mark.parametrize(
    ("path", "answered"), [("/v1/", True), ("/V1/x", True), ("/v1", False), ("/v2/x", False)]
)
def test_api_path(path: str, answered: bool) -> None:
    assert is_api_path(path) is answered
