"""Which function lowers which ONNX operator, by opset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from isthmus.export.tf_half.direct.graph import INTERNAL_DOMAIN, Node
from isthmus.export.tf_half.direct.values import Value

Handler = Callable[..., "Value | Sequence[Value]"]
HandlerT = TypeVar("HandlerT", bound=Handler)

_HANDLERS: dict[tuple[str, str], list[tuple[int, Handler]]] = {}


def op(op_type: str, *, since: int = 1, domain: str = "") -> Callable[[HandlerT], HandlerT]:
    """Register `handler(node, *inputs) -> output or outputs` for an operator from opset `since` on.

    Inputs are `Value`s, or None where an optional input is left out.
    """

    def register(handler: HandlerT) -> HandlerT:
        versions = _HANDLERS.setdefault((domain, op_type), [])
        versions.append((since, handler))
        versions.sort(key=lambda entry: entry[0])
        return handler

    return register


def internal(op_type: str) -> Callable[[HandlerT], HandlerT]:
    """Register an operator that only the fusion passes write."""
    return op(op_type, domain=INTERNAL_DOMAIN)


def handler_for(node: Node) -> Handler:
    """The newest handler not younger than the node's opset; raises UnsupportedOperatorError."""
    versions = _HANDLERS.get((node.domain, node.op_type))
    if not versions:
        raise node.unsupported(f"no lowering is written for it; there is one for {len(_HANDLERS)} operators")
    if node.domain == INTERNAL_DOMAIN:
        return versions[-1][1]
    usable = [handler for since, handler in versions if since <= node.opset]
    if not usable:
        raise node.unsupported(f"lowered from opset {versions[0][0]} on")
    return usable[-1]


def constant_input(node: Node, value: Value | None, what: str) -> np.ndarray:
    """The array of an input that must not depend on the images; UnsupportedOperatorError when it does."""
    if value is None or value.constant is None:
        raise node.unsupported(f"its {what} must be a constant")
    return value.constant


def constant_ints(node: Node, value: Value | None, what: str) -> list[int]:
    """The integers of a constant input (see constant_input)."""
    return [int(entry) for entry in np.atleast_1d(constant_input(node, value, what))]


def choice(node: Node, attribute: str, allowed: Sequence[Any], default: Any) -> Any:
    """A string attribute restricted to what is implemented; raises UnsupportedOperatorError otherwise."""
    value = node.attrs.get(attribute, default)
    if value not in allowed:
        listed = ", ".join(repr(entry) for entry in allowed)
        raise node.unsupported(f"{attribute}={value!r}; allowed: {listed}")
    return value
