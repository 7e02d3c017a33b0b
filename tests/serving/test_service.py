"""What both wires share, without a server around it; conformance/ asks servers."""

from pathlib import Path

import pytest

from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import RequestError
from isthmus.serving.manager import ModelManager
from isthmus.serving.metrics import Metrics
from isthmus.serving.routing import ModelRef, Route
from isthmus.serving.savedmodel import LoadedModel
from isthmus.serving.service import Service
from isthmus.serving.status import Code


def loads_nothing(_name: str, _version: int, _path: Path) -> LoadedModel:
    raise AssertionError("nothing is loaded here")


def test_what_no_tensor_can_hold_is_a_bad_request() -> None:
    """A feature's name is a protobuf string, which takes no bytes but UTF-8."""
    service = Service(ModelManager(loads_nothing), ServingConfig(), Metrics())
    with pytest.raises(RequestError, match="the request holds a value that cannot be converted: ") as caught:
        service.rest(Route("classify", ModelRef("m")), b'{"examples": [{"\xff": 1}]}')
    assert caught.value.code is Code.INVALID_ARGUMENT
