"""JSON as RapidJSON reads and writes it."""

import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.serving import json_text, rapidjson_reader
from isthmus.serving.errors import RequestError

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)


@given(JSON_VALUES)
def test_careful_reader_agrees_with_the_standard_library(value: Any) -> None:
    text = json.dumps(value)
    assert rapidjson_reader.parse(text.encode()) == json.loads(text)


@given(st.binary())
def test_every_text_is_a_value_or_a_parse_error(text: bytes) -> None:
    with contextlib.suppress(RequestError):
        json_text.parse(text)


def test_large_text_with_nan() -> None:
    text = b"[" + b",".join([b"NaN", b"-Infinity", b"1.5"] * 10_000) + b"]"
    values = json_text.parse(text)
    assert math.isnan(values[0])
    assert values[1:3] == [-math.inf, 1.5]
    assert len(values) == 30_000


def test_a_number_of_thousands_of_digits_is_too_big() -> None:
    text = b'{"instances": [' + b"9" * 5000 + b"]}"
    with pytest.raises(RequestError) as caught:
        json_text.parse(text)
    assert caught.value.message == "JSON Parse error: Number too big to be stored in double. at offset: 15"


def test_the_largest_integers() -> None:
    numbers = [-(2**63), -(2**63) - 1, 2**64 - 1, 2**64]
    read = rapidjson_reader.parse(json.dumps(numbers).encode())
    assert read == [-(2**63), float(-(2**63) - 1), 2**64 - 1, float(2**64)]
    assert [type(number) for number in read] == [int, float, int, float]


def test_duplicate_keys_find_the_first() -> None:
    assert rapidjson_reader.parse(b'{"a": 1, "a": 2}') == {"a": 1}


NO_RAPIDJSON = [b"1" + b"0" * 400, b"1e400", b'"\\ud800"', b'"\\uDC00\\ud800"', b"[1,]", b"'a'", b"-9e999"]


def large(text: bytes) -> bytes:
    """A text beyond what the careful reader is asked for first, with a NaN, which orjson refuses."""
    return b"[NaN" + b", 0.5" * 20_000 + b", " + text + b"]"


@pytest.mark.parametrize("text", NO_RAPIDJSON)
def test_large_texts_fail_as_small_ones_do(text: bytes) -> None:
    with pytest.raises(RequestError, match=r"^INVALID_ARGUMENT: JSON Parse error: .* at offset: ") as careful:
        rapidjson_reader.parse(large(text))
    with pytest.raises(RequestError) as caught:
        json_text.parse(large(text))
    assert caught.value.message == careful.value.message


@pytest.mark.parametrize(
    "text",
    [
        *(str(number).encode() for number in (2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**300, -0)),
        b'"\\ud83d\\ude42"',
        b'"a\xff"',
        b'{"a": 1, "a": 2, "b": {"c": 1, "c": [1], "d": 2}}',
        b"Inf",
        b"-NaN",
    ],
)
def test_large_texts_are_read_as_small_ones_are(text: bytes) -> None:
    read, careful = json_text.parse(large(text))[-1], rapidjson_reader.parse(text)
    assert (type(read), repr(read)) == (type(careful), repr(careful))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a": 1, "a": 2}', {"a": 1}),
        (b'{"instances": [{"x": [[1]], "x": 2}, {"x": 3}]}', {"instances": [{"x": [[1]]}, {"x": 3}]}),
        (b'[{"at": "12:30:00", "\\u003a": 1}]', [{"at": "12:30:00", ":": 1}]),
        (b'{"\\u003a": 1, "a": "\\u003a", "a": ":"}', {":": 1, "a": ":"}),
    ],
)
def test_duplicate_keys_find_the_first_in_every_reader(text: bytes, value: Any) -> None:
    assert json_text.parse(text) == value
    assert json_text.parse(large(text))[-1] == value


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    with pytest.raises(RequestError, match="Terminate parsing due to Handler error"):
        json_text.parse(b"[" * 100_000)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.5, "2.5"),
        (3.0, "3.0"),
        (9000000.0, "9e+06"),
        (0.00003, "3e-05"),
        (0.1, "0.1"),
        (1 / 3, "0.333333343"),
        (16777215.0, "16777215.0"),
        (-0.0, "-0.0"),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
    ],
)
def test_single_precision(value: float, text: str) -> None:
    assert json_text.decimal(value, single=True) == text


@given(st.lists(st.floats(width=32)))
def test_every_float32_reads_back(values: list[float]) -> None:
    array = np.array(values, np.float32)
    read = np.array([float(text) for text in json_text.decimals(array)], np.float32)
    np.testing.assert_array_equal(read, array)


@given(st.lists(st.floats()))
def test_every_float64_reads_back(values: list[float]) -> None:
    array = np.array(values, np.float64)
    np.testing.assert_array_equal([float(text) for text in json_text.decimals(array)], array)


def test_pretty() -> None:
    value = {"a": [1, True, None, 1.5, "x"], "b": {}, "c": []}
    assert json_text.pretty(value) == (
        '{\n    "a": [\n        1,\n        true,\n        null,\n        1.5,\n        "x"\n    ],\n'
        '    "b": {},\n    "c": []\n}'
    )
