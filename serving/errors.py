"""The errors of the serving part: one base class, and the one that carries an API status code.

`RequestError` is mapped to a response in exactly one place per wire: `grpc_edge` and `rest_edge`, through
`status`.
"""

from isthmus.serving.status import Code

__all__ = ["PortTakenError", "RequestError", "ServingError"]


class ServingError(Exception):
    """Something the person who runs the server or a client must change; the text says what."""

    exit_code: int = 1


class PortTakenError(ServingError):
    """A port that cannot be listened on."""


class RequestError(ServingError):
    """A request that the API answers with an error: a canonical status code and TensorFlow Serving's own
    text.

    Raised by the server's core on its way to the wire, and by the client for what came back from it.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"
