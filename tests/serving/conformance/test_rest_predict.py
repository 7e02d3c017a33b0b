"""JSON in, JSON out: formats, types, numbers, base64, errors. Texts are those of json_tensor.cc."""

import base64
import json
import math
from typing import Any

import pytest

HALF = "/v1/models/half_plus_two:predict"
ECHO = "/v1/models/echo:predict"


def echo(target: Any, dtype: str, **body: Any) -> Any:
    return target.post(ECHO, {"signature_name": f"echo_{dtype}", **body})


# ---- formats ----


def test_row_format_is_written_as_the_original_writes_it(target: Any) -> None:
    answer = target.post(HALF, {"instances": [1.0, 2.0, 5.0]})
    assert answer.status == 200
    assert answer.body == b'{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'


def test_column_format_is_written_as_the_original_writes_it(target: Any) -> None:
    answer = target.post(HALF, {"inputs": [1.0, 2.0]})
    assert answer.body == b'{\n    "outputs": [\n        2.5,\n        3.0\n    ]\n}'


def test_row_format_nested(target: Any) -> None:
    answer = target.post(HALF, {"instances": [[1.0, 2.0], [3.0, 4.0]]})
    assert answer.body == b'{\n    "predictions": [[2.5, 3.0], [3.5, 4.0]\n    ]\n}'


def test_column_format_nested(target: Any) -> None:
    answer = target.post(HALF, {"inputs": [[1.0], [3.0]]})
    assert answer.body == (
        b'{\n    "outputs": [\n        [\n            2.5\n        ],\n        [\n            3.5\n        '
        b"]\n    ]\n}"
    )


def test_named_rows(target: Any) -> None:
    rows = [{"a": 1.0, "b": [1, 2]}, {"a": 0.5, "b": [3, 4]}]
    answer = target.post(ECHO, {"signature_name": "pair", "instances": rows})
    assert answer.json == {"predictions": [{"sum": 4.0, "copy": [1, 2]}, {"sum": 7.5, "copy": [3, 4]}]}


def test_named_columns(target: Any) -> None:
    answer = target.post(ECHO, {"signature_name": "pair", "inputs": {"a": [1.0], "b": [[1, 2]]}})
    assert answer.json == {"outputs": {"sum": [4.0], "copy": [[1, 2]]}}


def test_one_named_input(target: Any) -> None:
    assert target.post(HALF, {"instances": [{"x": 1.0}]}).json == {"predictions": [2.5]}
    assert target.post(HALF, {"inputs": {"x": [1.0]}}).json == {"outputs": [2.5]}


def test_scalar_column(target: Any) -> None:
    assert echo(target, "float32", inputs=1.5).body == b'{\n    "outputs": 1.5\n}'


def test_empty_column(target: Any) -> None:
    assert echo(target, "float32", inputs=[]).body == b'{\n    "outputs": []\n}'


def test_duplicate_signature_key_order_does_not_matter(target: Any) -> None:
    assert target.post(ECHO, '{"instances": [true], "signature_name": "echo_bool"}').json == {
        "predictions": [True]
    }


# ---- numbers ----


@pytest.mark.parametrize(
    ("dtype", "sent", "written"),
    [
        ("float32", "0.1", "0.1"),
        ("float32", "0.123456789", "0.123456791"),
        ("float32", "16777215", "16777215.0"),
        ("float32", "1000000", "1e+06"),
        ("float32", "1234567.5", "1234567.5"),
        ("float32", "3e-5", "3e-05"),
        ("float32", "-0.0", "-0.0"),
        ("float32", "1e-40", "9.99995e-41"),
        ("float32", "3.4028234e38", "3.40282347e+38"),
        ("float64", "0.1", "0.1"),
        ("float64", "0.12345678901234567", "0.12345678901234566"),
        ("float64", "9007199254740991", "9007199254740991.0"),
        ("float32", "NaN", "NaN"),
        ("float32", "Infinity", "Infinity"),
        ("float64", "-Infinity", "-Infinity"),
        ("float32", "Inf", "Infinity"),
        ("float32", "-Inf", "-Infinity"),
        ("int32", "-2147483648", "-2147483648"),
        ("int64", "9223372036854775807", "9223372036854775807"),
        ("uint8", "255", "255"),
        ("int8", "-128", "-128"),
        ("int16", "-5", "-5"),
        ("uint32", "4294967295", "4294967295"),
        ("uint64", "18446744073709551615", "18446744073709551615"),
        ("bool", "true", "true"),
    ],
)
def test_number(target: Any, dtype: str, sent: str, written: str) -> None:
    answer = target.post(ECHO, f'{{"signature_name": "echo_{dtype}", "instances": [{sent}]}}')
    assert answer.body.decode() == f'{{\n    "predictions": [{written}\n    ]\n}}'


def test_model_made_infinities(target: Any) -> None:
    answer = target.post(ECHO, {"signature_name": "division", "instances": [1.0, -1.0, 0.0]})
    values = answer.json["predictions"]
    assert values[:2] == [math.inf, -math.inf]
    assert math.isnan(values[2])


@pytest.mark.parametrize(
    ("dtype", "sent", "error"),
    [
        ("float32", "16777216", "Cannot convert JSON value: 16777216 to float without loss of precision."),
        ("float32", "3.5e38", "Cannot convert JSON value: 3.5e+38 to float without loss of precision."),
        (
            "float64",
            "9007199254740992",
            "Cannot convert JSON value: 9007199254740992 to double without loss of precision.",
        ),
        ("float32", "true", "JSON Value: true Type: True is not of expected type: float"),
        ("float32", '"1.0"', 'JSON Value: "1.0" Type: String is not of expected type: float'),
        ("float32", "null", "JSON Value: null Type: Null is not of expected type: float"),
        ("int32", "1.0", "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        ("int32", "2147483648", "JSON Value: 2147483648 Type: Number is not of expected type: int32"),
        (
            "int64",
            "9223372036854775808",
            "JSON Value: 9223372036854775808 Type: Number is not of expected type: int64",
        ),
        ("uint32", "-1", "JSON Value: -1 Type: Number is not of expected type: uint32"),
        ("uint64", "-1", "JSON Value: -1 Type: Number is not of expected type: uint64"),
        ("bool", "1", "JSON Value: 1 Type: Number is not of expected type: bool"),
        ("string", "1", "JSON Value: 1 Type: Number is not of expected type: string"),
    ],
)
def test_value_of_a_wrong_type(target: Any, dtype: str, sent: str, error: str) -> None:
    answer = target.post(ECHO, f'{{"signature_name": "echo_{dtype}", "inputs": [{sent}]}}')
    assert (answer.status, answer.error) == (400, error)
    answer = target.post(ECHO, f'{{"signature_name": "echo_{dtype}", "instances": [{sent}]}}')
    expected = f"Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: {error}"
    assert (answer.status, answer.error) == (400, expected)


@pytest.mark.parametrize("dtype", ["complex64", "float16", "bfloat16", "uint16"])
def test_type_that_json_cannot_carry(target: Any, dtype: str) -> None:
    answer = echo(target, dtype, inputs=[1])
    name = {"float16": "half"}.get(dtype, dtype)
    assert (answer.status, answer.error) == (501, f"Conversion of JSON Value: 1 to type: {name}")


# ---- strings ----


def test_strings(target: Any) -> None:
    text = 'ä "quoted" \\ /\n\t\x01 €'
    answer = echo(target, "string", instances=[text])
    assert answer.json == {"predictions": [text]}
    assert b'\\"quoted\\" \\\\ /\\n\\t\\u0001' in answer.body


def test_base64_in(target: Any) -> None:
    data = {"b64": base64.b64encode(b"abc").decode()}
    assert echo(target, "string", instances=[data, "plain"]).json == {"predictions": ["abc", "plain"]}
    assert echo(target, "string", inputs=data).json == {"outputs": "abc"}


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\x00raw", bytes(range(256))])
def test_outputs_named_bytes_are_base64(target: Any, data: bytes) -> None:
    encoded = {"b64": base64.b64encode(data).decode()}
    answer = target.post(ECHO, {"signature_name": "echo_bytes", "instances": [encoded]})
    assert answer.json == {"predictions": [encoded]}
    named = target.post(ECHO, {"signature_name": "echo_bytes", "instances": [{"image_bytes": encoded}]})
    assert named.json == {"predictions": [encoded]}


def test_broken_base64(target: Any) -> None:
    answer = echo(target, "string", inputs=[{"b64": "a?b"}])
    assert (answer.status, answer.error) == (400, "Unable to base64 decode")


def test_object_that_is_no_base64(target: Any) -> None:
    answer = echo(target, "string", inputs=[{"b64": "YQ==", "x": 1}])
    assert answer.status == 400
    assert answer.error == (
        'JSON Value: {\n    "b64": "YQ==",\n    "x": 1\n} not formatted correctly for base64 data'
    )


def test_object_for_a_number(target: Any) -> None:
    answer = echo(target, "float32", inputs=[{"b64": "YQ=="}])
    assert answer.error == 'JSON Value: {\n    "b64": "YQ=="\n} Type: Object is not of expected type: float'


# ---- shapes ----


@pytest.mark.parametrize(
    ("instances", "error"),
    [
        (
            [[1.0], [1.0, 2.0]],
            "1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 1 but got: 2",
        ),
        (
            [[[1.0, 2.0]], [[1.0], [2.0]]],
            "1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting shape [1,2] but got: [2,1]",
        ),
        (
            [[1.0, [2.0]]],
            "0 of 'instances' list. Error: INVALID_ARGUMENT: Encountered list at unexpected level: 1 "
            "expected < 1",
        ),
        (
            [[[1.0], 2.0]],
            "0 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: 2.0 found at incorrect level: 2 "
            "in the JSON DOM. Expected at level: 2",
        ),
        (
            [[[1.0], [1.0, 2.0]]],
            "0 of 'instances' list. Error: INVALID_ARGUMENT: Encountered list at unexpected size: 2 at "
            "level: 1 "
            "expected size: 1",
        ),
    ],
)
def test_ragged_rows(target: Any, instances: Any, error: str) -> None:
    answer = target.post(HALF, {"instances": instances})
    assert (answer.status, answer.error) == (400, f"Failed to process element: {error}")


# ---- bodies ----


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("", "JSON Parse error: The document is empty"),
        ("{", "JSON Parse error: Missing a name for object member. at offset: 1"),
        ('{"a" 1}', "JSON Parse error: Missing a colon after a name of object member. at offset: 5"),
        ('{"a": 1 2}', "JSON Parse error: Missing a comma or } after an object member. at offset: 8"),
        ('{"a": [1 2]}', "JSON Parse error: Missing a comma or ] after an array element. at offset: 9"),
        ('{"a": nul}', "JSON Parse error: Invalid value. at offset: 9"),
        (
            '{"a": 1} x',
            "JSON Parse error: The document root must not be followed by other values. at offset: 9",
        ),
        ('{"a": "b}', "JSON Parse error: Missing a closing quotation mark in string. at offset: 6"),
        ('{"a": 1.}', "JSON Parse error: Miss fraction part in number. at offset: 8"),
        ('{"a": 1e}', "JSON Parse error: Miss exponent in number. at offset: 8"),
        ('{"a": 1e999}', "JSON Parse error: Number too big to be stored in double. at offset: 6"),
        ('{"a": "\\x"}', "JSON Parse error: Invalid escape character in string. at offset: 7"),
        (
            '{"a": "\\u12G4"}',
            "JSON Parse error: Incorrect hex digit after \\u escape in string. at offset: 7",
        ),
        ('{"a": "\\ud800"}', "JSON Parse error: The surrogate pair in string is invalid. at offset: 7"),
        ("[1]", "JSON Value: [\n    1\n] Is not object"),
        ("1.5", "JSON Value: 1.5 Is not object"),
        ("{}", "Missing 'inputs' or 'instances' key"),
        (
            '{"signature_name": 5}',
            'JSON Value: {\n    "signature_name": 5\n} not formatted correctly. '
            "'signature_name' key must be a string value.",
        ),
        (
            '{"instances": 5}',
            "JSON Value: {\n    \"instances\": 5\n} Excepting 'instances' to be an list/array",
        ),
        ('{"instances": []}', "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
        (
            '{"instances": [1.0], "inputs": [1.0]}',
            'JSON Value: {\n    "instances": [\n        1.0\n    ],\n    "inputs": [\n        1.0\n    ]\n} '
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ",
        ),
    ],
)
def test_body_that_is_no_request(target: Any, body: str, error: str) -> None:
    answer = target.post(HALF, body)
    assert (answer.status, answer.error) == (400, error)


def test_a_broken_body_is_told_before_an_unknown_model(target: Any) -> None:
    assert target.post("/v1/models/nope:predict", "{").status == 400
    assert target.post("/v1/models/nope:predict", "{}").status == 404


def test_unknown_signature(target: Any) -> None:
    answer = target.post(HALF, {"signature_name": "nope", "instances": [1.0]})
    assert (answer.status, answer.error) == (400, 'Serving signature name: "nope" not found in signature def')


PAIR = "instances is a plain list, but expecting list of objects as multiple input tensors required"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"instances": [1.0]}, f"{PAIR} as per tensorinfo_map"),
        (
            {"inputs": [1.0]},
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
            "tensorinfo_map",
        ),
        ({"inputs": {"a": [1.0]}}, "Missing named input: b in 'inputs' object."),
        (
            {"instances": [{"a": 1.0, "b": [1, 2]}, 5]},
            "Expecting object but got list at item 1 of input list",
        ),
        (
            {"instances": [{"a": 1.0}]},
            "Failed to process element: 0 of 'instances' list. JSON object: {\n    \"a\": 1.0\n} "
            "keys must be equal to: a,b",
        ),
        (
            {"instances": [{"a": 1.0, "c": 1}]},
            "Failed to process element: 0 key: c of 'instances' list. Error: INVALID_ARGUMENT: "
            "JSON object: does not have named input: c",
        ),
        (
            {"instances": [{"a": "x", "b": [1, 2]}]},
            "Failed to process element: 0 key: a of 'instances' list. Error: INVALID_ARGUMENT: "
            'JSON Value: "x" Type: String is not of expected type: float',
        ),
    ],
)
def test_wrong_named_inputs(target: Any, body: Any, error: str) -> None:
    answer = target.post(ECHO, {"signature_name": "pair", **body})
    assert (answer.status, answer.error) == (400, error)


def test_object_among_plain_rows(target: Any) -> None:
    answer = target.post(HALF, {"instances": [1.0, {"x": 1.0}]})
    assert answer.error == "Expecting value/list but got object at item 1 of input list"


# ---- outputs that have no row format ----


def test_output_without_a_batch(target: Any) -> None:
    answer = target.post(ECHO, {"signature_name": "scalar", "instances": [1.0]})
    assert (answer.status, answer.error) == (400, "Tensor name: total has no shape information ")
    assert target.post(ECHO, {"signature_name": "scalar", "inputs": [1.0, 2.0]}).json == {"outputs": 3.0}


def test_outputs_of_different_length(target: Any) -> None:
    answer = target.post(ECHO, {"signature_name": "uneven", "instances": [1.0, 2.0]})
    assert answer.status == 400
    assert "has inconsistent batch size: " in answer.error


# ---- errors of the computation ----


def test_error_in_the_graph(target: Any) -> None:
    answer = target.post(ECHO, {"signature_name": "fails", "instances": [1.0]})
    assert answer.status == 400
    assert "no number : Tensor had Inf values" in answer.error


def test_wrong_rank(target: Any) -> None:
    answer = target.post(ECHO, {"signature_name": "pair", "inputs": {"a": [1.0, 2.0], "b": [1, 2]}})
    assert answer.status == 400


@pytest.mark.parametrize("depth", [200, 900, 5000])
def test_deep_nesting_is_a_bad_request(target: Any, depth: int) -> None:
    answer = target.post(HALF, '{"instances": ' + "[" * depth + "1.0" + "]" * depth + "}")
    assert answer.status == 400


def test_large_body(target: Any) -> None:
    values = [i / 7 for i in range(100_000)]
    answer = target.post(ECHO, json.dumps({"signature_name": "echo_float64", "inputs": values}))
    assert answer.json["outputs"] == values
