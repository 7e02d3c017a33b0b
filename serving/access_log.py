"""The access log: one JSON line for each request on either wire, refused ones included; gRPC's health checks and
reflection leave none.

{"time": "2026-01-31T12:00:00.123Z", "wire": "REST", "peer": "127.0.0.1:5000", "method": "POST",
 "path": "/v1/models/digits:predict", "status": "OK", "http_status": 200, "bytes_in": 612, "bytes_out": 97,
 "duration_ms": 3.1}
"""

import datetime
import json
from pathlib import Path
from typing import IO, Any

from isthmus.serving.background_writer import BackgroundWriter
from isthmus.serving.errors import ServingError

__all__ = ["AccessLog"]

# What a client sends is not copied without end.
_MAX_TEXT = 512


class AccessLog:
    """Appends to a file, which may be moved away at any time (a new one is begun).

    Raises:
        ServingError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise ServingError(f"cannot write the access log {path}: {error.strerror}") from error
        self._writer = BackgroundWriter("access log", self._write, self._close)

    def request(
        self, *, wire: str, peer: str, method: str, path: str, duration_ms: float, **facts: Any
    ) -> None:
        """One finished request; facts are further members of the line."""
        now = datetime.datetime.now(datetime.UTC)
        line = {
            "time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "wire": wire,
            "peer": peer,
            "method": method,
            "path": path[:_MAX_TEXT],
            **facts,
            "duration_ms": round(duration_ms, 3),
        }
        self._writer.offer(json.dumps(line))

    def stop(self) -> None:
        """Write what waits, and close the file."""
        self._writer.stop()

    def _open(self) -> None:
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        self._inode = self._path.stat().st_ino

    def _write(self, line: str) -> None:
        if self._file is None or not self._path.exists() or self._path.stat().st_ino != self._inode:
            self._close()
            self._open()
        assert self._file is not None
        self._file.write(line + "\n")

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
