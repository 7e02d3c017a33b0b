"""A JSON reader that fails as RapidJSON fails: same error, same offset. Slow; for texts that the fast parsers
refuse.

It follows rapidjson/reader.h (GenericReader::ParseValue and what it calls) with kParseNanAndInfFlag, and
rapidjson/error/en.h for the texts.
"""

import re
import struct
from typing import Any

from isthmus.serving.errors import RequestError
from isthmus.serving.status import Code

__all__ = ["MAX_INTEGER_CHARACTERS", "parse"]

_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)")
_FRACTION = re.compile(rb"\.[0-9]+")
_EXPONENT = re.compile(rb"[eE][+-]?[0-9]+")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f\x80-\xff]+')
_HEX4 = re.compile(rb"[0-9a-fA-F]{4}")
_SIMPLE_ESCAPES = {
    0x22: '"',
    0x5C: "\\",
    0x2F: "/",
    0x62: "\b",
    0x66: "\f",
    0x6E: "\n",
    0x72: "\r",
    0x74: "\t",
}
_LITERALS: dict[int, tuple[bytes, bool | None]] = {
    ord("n"): (b"null", None),
    ord("t"): (b"true", True),
    ord("f"): (b"false", False),
}
_WHITE = b" \n\r\t"
# Of an integer that 64 bits hold, with its sign. Python's int() fails beyond 4,300.
MAX_INTEGER_CHARACTERS = 20
# RapidJSON itself has no limit and overflows its stack; a tensor has at most 254 dimensions.
_MAX_DEPTH = 300


def parse(text: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        RequestError: INVALID_ARGUMENT `JSON Parse error: <RapidJSON's text> at offset: <bytes>`.
    """
    reader = _Reader(text.removeprefix(b"\xef\xbb\xbf"))
    reader.skip_white()
    if reader.at_end():
        raise RequestError(
            Code.INVALID_ARGUMENT,
            "JSON Parse error: The document is empty"
            if not text
            else f"JSON Parse error: The document is empty. at offset: {reader.position}",
        )
    value = reader.value(0)
    reader.skip_white()
    if not reader.at_end():
        raise reader.error("The document root must not be followed by other values.")
    return value


class _Reader:
    def __init__(self, text: bytes) -> None:
        self._text = text
        self.position = 0

    def at_end(self) -> bool:
        """RapidJSON's streams end at a zero byte, too."""
        return self._peek() == 0

    def error(self, message: str, position: int | None = None) -> RequestError:
        """The parse error at a position (default: here)."""
        offset = self.position if position is None else position
        return RequestError(Code.INVALID_ARGUMENT, f"JSON Parse error: {message} at offset: {offset}")

    def skip_white(self) -> None:
        while self.position < len(self._text) and self._text[self.position] in _WHITE:
            self.position += 1

    def value(self, depth: int) -> Any:
        """The value that begins here."""
        if depth > _MAX_DEPTH:
            raise self.error("Terminate parsing due to Handler error.")
        start = self._peek()
        if start in _LITERALS:
            return self._literal(*_LITERALS[start])
        if start == ord('"'):
            return self._string()
        if start == ord("{"):
            return self._object(depth)
        if start == ord("["):
            return self._array(depth)
        return self._number()

    def _peek(self) -> int:
        return self._text[self.position] if self.position < len(self._text) else 0

    def _literal(self, word: bytes, value: Any) -> Any:
        # RapidJSON consumes the first letter, then letter by letter what matches, and reports where it
        # stopped.
        for letter in word:
            if self._peek() != letter:
                raise self.error("Invalid value.")
            self.position += 1
        return value

    def _object(self, depth: int) -> dict[str, Any]:
        self.position += 1
        members: dict[str, Any] = {}
        self.skip_white()
        if self._peek() == ord("}"):
            self.position += 1
            return members
        while True:
            if self._peek() != ord('"'):
                raise self.error("Missing a name for object member.")
            name = self._string()
            self.skip_white()
            if self._peek() != ord(":"):
                raise self.error("Missing a colon after a name of object member.")
            self.position += 1
            self.skip_white()
            # The document keeps every duplicate and lookups find the first.
            members.setdefault(name, self.value(depth + 1))
            self.skip_white()
            if self._peek() == ord("}"):
                self.position += 1
                return members
            if self._peek() != ord(","):
                raise self.error("Missing a comma or } after an object member.")
            self.position += 1
            self.skip_white()

    def _array(self, depth: int) -> list[Any]:
        self.position += 1
        elements: list[Any] = []
        self.skip_white()
        if self._peek() == ord("]"):
            self.position += 1
            return elements
        while True:
            elements.append(self.value(depth + 1))
            self.skip_white()
            if self._peek() == ord("]"):
                self.position += 1
                return elements
            if self._peek() != ord(","):
                raise self.error("Missing a comma or ] after an array element.")
            self.position += 1
            self.skip_white()

    def _number(self) -> float | int:
        start, text = self.position, self._text
        match = _NUMBER.match(text, start)
        if match is None:
            return self._nan_or_inf()
        self.position = match.end()
        is_integer = True
        if self._peek() == ord("."):
            fraction = _FRACTION.match(text, self.position)
            if fraction is None:
                raise self.error("Miss fraction part in number.", self.position + 1)
            self.position, is_integer = fraction.end(), False
        if self._peek() in b"eE":
            exponent = _EXPONENT.match(text, self.position)
            if exponent is None:
                signed = text[self.position + 1 : self.position + 2] in (b"+", b"-")
                raise self.error("Miss exponent in number.", self.position + (2 if signed else 1))
            self.position, is_integer = exponent.end(), False
        digits = text[start : self.position]
        if is_integer and len(digits) <= MAX_INTEGER_CHARACTERS and -(2**63) <= int(digits) < 2**64:
            return int(digits)
        number = float(digits)
        if number in (float("inf"), float("-inf")):
            raise self.error("Number too big to be stored in double.", start)
        return number

    def _nan_or_inf(self) -> float:
        sign = 1.0
        if self._peek() == ord("-"):
            sign = -1.0
            self.position += 1
        for words, number in (((b"NaN",), float("nan")), ((b"Infinity", b"Inf"), float("inf"))):
            for word in words:
                if self._text.startswith(word, self.position):
                    self.position += len(word)
                    return sign * number
        raise self.error("Invalid value.")

    def _string(self) -> str:
        start = self.position
        self.position += 1
        parts: list[str] = []
        while True:
            plain = _PLAIN.match(self._text, self.position)
            if plain is not None:
                parts.append(plain.group().decode("ascii"))
                self.position = plain.end()
            byte = self._peek()
            if byte == ord('"'):
                self.position += 1
                return "".join(parts)
            if byte == ord("\\"):
                parts.append(self._escape())
            elif byte >= 0x80:
                parts.append(self._beyond_ascii())
            elif byte == 0:
                raise self.error("Missing a closing quotation mark in string.", start)
            else:
                raise self.error("Invalid encoding in string.")

    def _beyond_ascii(self) -> str:
        """The run of non-ASCII bytes here; kept as they are even when they are no UTF-8, as RapidJSON
        does."""
        end = self.position
        while end < len(self._text) and self._text[end] >= 0x80:
            end += 1
        run = self._text[self.position : end]
        self.position = end
        return run.decode("utf-8", "surrogateescape")

    def _escape(self) -> str:
        start = self.position
        self.position += 1
        kind = self._peek()
        if kind in _SIMPLE_ESCAPES:
            self.position += 1
            return _SIMPLE_ESCAPES[kind]
        if kind != ord("u"):
            raise self.error("Invalid escape character in string.", start)
        self.position += 1
        unit = self._hex4(start)
        if not 0xD800 <= unit <= 0xDFFF:
            return chr(unit)
        if unit >= 0xDC00 or self._text[self.position : self.position + 2] != b"\\u":
            raise self.error("The surrogate pair in string is invalid.", start)
        self.position += 2
        low = self._hex4(start)
        if not 0xDC00 <= low <= 0xDFFF:
            raise self.error("The surrogate pair in string is invalid.", start)
        return struct.pack("<HH", unit, low).decode("utf-16-le")

    def _hex4(self, start: int) -> int:
        match = _HEX4.match(self._text, self.position)
        if match is None:
            raise self.error("Incorrect hex digit after \\u escape in string.", start)
        self.position = match.end()
        return int(match.group(), 16)
