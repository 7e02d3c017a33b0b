"""Predict bodies; conformance/test_rest_predict.py asserts the texts of all errors against a server."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.serving import json_request, json_values
from isthmus.serving.errors import RequestError
from isthmus.serving.json_request import PredictBody, parse_predict

DTYPES = {
    "float": 1,
    "double": 2,
    "int32": 3,
    "uint8": 4,
    "int8": 6,
    "string": 7,
    "int64": 9,
    "bool": 10,
    "uint64": 23,
}


def parse(document: Any, **inputs: str) -> PredictBody:
    infos = {name: SimpleNamespace(dtype=DTYPES[dtype]) for name, dtype in inputs.items()}
    return parse_predict(json.dumps(document).encode(), lambda _signature: infos)


LEAVES = (
    st.floats(allow_nan=False)
    | st.integers(-300, 300)
    | st.integers(-(2**64), 2**65)
    | st.booleans()
    | st.text(max_size=3)
    | st.none()
    | st.just({"b64": "YQ=="})
)
TENSORS = LEAVES | st.lists(LEAVES | st.lists(LEAVES, max_size=3), min_size=1, max_size=3)


@given(st.lists(TENSORS, min_size=1, max_size=4), st.sampled_from(sorted(DTYPES)))
def test_fast_and_careful_paths_agree(instances: list[Any], dtype: str) -> None:
    def answer(careful: bool) -> tuple[Any, ...]:
        with pytest.MonkeyPatch.context() as patch:
            if careful:
                patch.setattr(json_request, "dense_array", lambda _value, _dtype: None)
            try:
                array = parse({"instances": instances}, x=dtype).inputs["x"]
            except RequestError as error:
                return error.code, error.message
            return array.dtype, array.shape, array.tolist()

    assert answer(careful=True) == answer(careful=False)


def test_rows_and_columns_of_the_same_tensor() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for key in ("instances", "inputs"):
        body = parse({key: values.tolist()}, x="float")
        assert body.row_format is (key == "instances")
        np.testing.assert_array_equal(body.inputs["x"], values)
        assert body.inputs["x"].dtype == np.float32


def test_narrow_integers_wrap_as_int_val_does() -> None:
    assert parse({"inputs": [300, -1]}, x="uint8").inputs["x"].tolist() == [44, 255]


@pytest.mark.parametrize("strings", [b'"a\xffb"', b'["a\xffb", "c"]', b'"\xed\xa0\x80"', b'"\xc3\xa4\xc3"'])
def test_strings_that_are_no_utf8_arrive_byte_by_byte(strings: bytes) -> None:
    """Both the dense path (a list of strings) and the careful one (a string alone)."""
    body = parse_predict(b'{"inputs": ' + strings + b"}", lambda _signature: {"x": SimpleNamespace(dtype=7)})
    wanted = [text.strip(b' "[]') for text in strings.split(b",")]
    assert np.ravel(body.inputs["x"]).tolist() == wanted


@pytest.mark.parametrize(
    ("text", "data"),
    [("YWI=", b"ab"), ("YWI", b"ab"), ("Y W\nI=", b"ab"), ("", b"")],
)
def test_base64(text: str, data: bytes) -> None:
    assert json_values.decode_base64({"b64": text}) == data


@pytest.mark.parametrize("text", ["Y", "YWI==", "Y-I=", "ä==="])
def test_broken_base64(text: str) -> None:
    with pytest.raises(RequestError, match="Unable to base64 decode"):
        json_values.decode_base64({"b64": text})
