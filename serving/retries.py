"""Trying a call again while there is time: exponential backoff with full jitter, within one deadline."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from isthmus.serving.errors import RequestError
from isthmus.serving.status import Code

__all__ = ["NO_RETRIES", "RetryPolicy", "call_with_retries", "call_with_retries_async"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """When to try again. A predict changes nothing on the server, so trying twice does no harm."""

    max_retries: int = 4
    """Tries beyond the first."""

    first_pause_s: float = 0.05
    """Longest pause before the first retry; the pause itself is drawn at random below it."""

    growth: float = 3.0
    """What the longest pause is multiplied by, retry by retry."""

    max_pause_s: float = 2.0
    """Where it stops growing."""

    codes: frozenset[Code] = frozenset({Code.UNAVAILABLE})
    """Answers worth another try: no server, a server that stops, a full batching queue."""

    def pauses(self) -> Iterator[float]:
        """Seconds before each retry."""
        longest = self.first_pause_s
        for _ in range(self.max_retries):
            yield random.uniform(0.0, longest)
            longest = min(longest * self.growth, self.max_pause_s)


NO_RETRIES = RetryPolicy(max_retries=0)


def call_with_retries(call: Callable[[float], T], policy: RetryPolicy, *, timeout_s: float) -> T:
    """What call(seconds left) returns, tried again as the policy says.

    Raises:
        RequestError: the last try's, when it is not worth another or no time is left for one.
    """
    deadline, pauses = time.monotonic() + timeout_s, policy.pauses()
    while True:
        try:
            return call(max(deadline - time.monotonic(), 0.001))
        except RequestError as error:
            time.sleep(_pause_after(error, policy, pauses, deadline))


async def call_with_retries_async(
    call: Callable[[float], Awaitable[T]], policy: RetryPolicy, *, timeout_s: float
) -> T:
    """`call_with_retries` of a coroutine function.

    Raises:
        RequestError: as there.
    """
    deadline, pauses = time.monotonic() + timeout_s, policy.pauses()
    while True:
        try:
            return await call(max(deadline - time.monotonic(), 0.001))
        except RequestError as error:
            await asyncio.sleep(_pause_after(error, policy, pauses, deadline))


def _pause_after(error: RequestError, policy: RetryPolicy, pauses: Iterator[float], deadline: float) -> float:
    pause = next(pauses, None) if error.code in policy.codes else None
    if pause is None or time.monotonic() + pause >= deadline:
        raise error
    return pause
