"""JSON text as RapidJSON reads and writes it: NaN and Infinity literals, its parse errors, its pretty
printer.

Reading tries the fast parsers first; a text that they refuse, or might read as something else than RapidJSON, is read
by `rapidjson_reader`, which knows RapidJSON's error texts and offsets.
"""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson

from isthmus.serving import rapidjson_reader

__all__ = ["decimal", "decimals", "parse", "pretty", "quoted", "type_name"]

# Above this size a text that orjson cannot read (mostly for its NaNs) is given to the standard library's C
# scanner before the careful reader: a megabyte of NaNs would take that one seconds.
_CAREFUL_BELOW_BYTES = 1 << 16
_INDENT = "    "


def parse(text: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        RequestError: INVALID_ARGUMENT `JSON Parse error: … at offset: …`.
    """
    try:
        value = orjson.loads(text)
        if _has_all_members(value, text.count(b":")):
            return value
        is_scanned = True
    except orjson.JSONDecodeError:
        is_scanned = len(text) >= _CAREFUL_BELOW_BYTES and _ESCAPED_SURROGATE.search(text) is None
    if is_scanned:
        try:
            return _SCANNER.decode(text.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError):
            pass
    return rapidjson_reader.parse(text)


def _has_all_members(value: Any, num_colons: int) -> bool:
    """Whether no key of an object can have been dropped: RapidJSON finds the first of its duplicates, orjson the
    last.

    Each member has a colon in the text; it is enough to find as many members as colons, which a look at the objects
    alone mostly does (numbers are not looked at one by one). Colons within strings make the answer a False that costs
    a second reading and nothing else.
    """
    level = [value]
    while level:
        objects = [one for one in level if type(one) is dict]
        num_colons -= sum(map(len, objects))
        if not num_colons:
            return True
        inner: list[Iterable[Any]] = [one.values() for one in objects]
        inner += [one for one in level if type(one) is list]
        level = [one for elements in inner for one in elements if type(one) in (dict, list)]
    return False


def _first_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        members = {}
        for name, value in pairs:
            members.setdefault(name, value)
    return members


def _integer(digits: str) -> int | float:
    if len(digits) <= rapidjson_reader.MAX_INTEGER_CHARACTERS and -(2**63) <= (number := int(digits)) < 2**64:
        return number
    return _finite(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("RapidJSON's error, with its offset, is the careful reader's to word")
    return number


# The standard library's scanner, told what it would read otherwise than RapidJSON: the last of duplicate keys, 1e400 as
# an infinity, integers of any size. A lone surrogate ("\ud800") it would let pass, too.
_SCANNER = json.JSONDecoder(object_pairs_hook=_first_members, parse_int=_integer, parse_float=_finite)
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def pretty(value: Any) -> str:
    """A JSON value as the API's error texts quote it: RapidJSON's PrettyWriter, four spaces."""
    return _pretty(value, 0) if not isinstance(value, float) else decimal(value, single=abs(value) <= 3.4e38)


def type_name(value: Any) -> str:
    """RapidJSON's name of a value's type, as the API's error texts spell it."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return "True" if value else "False"
    if isinstance(value, dict):
        return "Object"
    if isinstance(value, list):
        return "Array"
    return "String" if isinstance(value, str) else "Number"


def decimal(value: float, *, single: bool) -> str:
    """A number as the API writes it: %g, or more digits where six do not read back; ".0" on whole numbers.

    Args:
        value: any float, NaN and infinities included.
        single: whether the number is a float32 (nine digits suffice) or a float64 (seventeen).
    """
    return decimals(np.array([value], np.float32 if single else np.float64))[0]


def decimals(values: np.ndarray[Any, Any]) -> list[str]:
    """`decimal` of every element of a flat float32 or float64 array."""
    numbers = values.tolist()
    texts = ("%g " * len(numbers) % tuple(numbers)).split()
    read_back = np.array(texts, np.float64).astype(values.dtype)
    changed = np.flatnonzero(read_back != values).tolist()
    longer = "%.9g " if values.dtype == np.float32 else "%.17g "
    for index, text in zip(
        changed, (longer * len(changed) % tuple(numbers[i] for i in changed)).split(), strict=True
    ):
        texts[index] = text
    # Only these can have a text without a point: whatever else reads back as itself has digits behind it.
    with np.errstate(invalid="ignore"):
        whole = np.flatnonzero((values == np.trunc(values)) | ~np.isfinite(values))
    for index in whole.tolist():
        text = texts[index]
        if "." not in text and "e" not in text:
            texts[index] = _WORDS.get(text) or f"{text}.0"
    return texts


_WORDS = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN", "-nan": "NaN"}

_LITERALS = {True: "true", False: "false", None: "null"}

_ESCAPES = {code: f"\\u{code:04X}" for code in range(0x20)} | {
    ord('"'): '\\"',
    ord("\\"): "\\\\",
    8: "\\b",
    9: "\\t",
    10: "\\n",
    12: "\\f",
    13: "\\r",
}


def quoted(text: str) -> str:
    """A JSON string with RapidJSON's escapes; everything beyond ASCII stays as it is."""
    return f'"{text.translate(_ESCAPES)}"'


def _pretty(value: Any, depth: int) -> str:
    inner, outer = _INDENT * (depth + 1), _INDENT * depth
    if isinstance(value, dict):
        members = ",\n".join(
            f"{inner}{quoted(key)}: {_pretty(member, depth + 1)}" for key, member in value.items()
        )
        return f"{{\n{members}\n{outer}}}" if value else "{}"
    if isinstance(value, list):
        elements = ",\n".join(f"{inner}{_pretty(element, depth + 1)}" for element in value)
        return f"[\n{elements}\n{outer}]" if value else "[]"
    if isinstance(value, float):
        # Inside a container RapidJSON's own Double(): the shortest text that reads back; nothing for a NaN.
        return repr(value) if math.isfinite(value) else ""
    if type(value) is int:  # a bool is one, too, and is a literal
        return str(value)
    return quoted(value) if isinstance(value, str) else _LITERALS[value]
