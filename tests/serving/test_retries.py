"""Backoff within a deadline."""

import asyncio
import time

import pytest

from isthmus.serving.errors import RequestError
from isthmus.serving.retries import NO_RETRIES, RetryPolicy, call_with_retries, call_with_retries_async
from isthmus.serving.status import Code


class Flaky:
    """Fails a number of times, then answers."""

    def __init__(self, num_failures: int, code: Code = Code.UNAVAILABLE) -> None:
        self.left, self.code, self.timeouts = num_failures, code, list[float]()

    def __call__(self, timeout_s: float) -> str:
        """A try."""
        self.timeouts.append(timeout_s)
        if self.left:
            self.left -= 1
            raise RequestError(self.code, "busy")
        return "answer"


POLICY = RetryPolicy(max_retries=3, first_pause_s=0.01)


def test_retries_share_one_deadline() -> None:
    flaky = Flaky(3)
    assert call_with_retries(flaky, POLICY, timeout_s=5) == "answer"
    assert len(flaky.timeouts) == 4
    assert flaky.timeouts == sorted(flaky.timeouts, reverse=True)


@pytest.mark.parametrize(
    ("flaky", "policy", "num_calls"),
    [
        (Flaky(9), POLICY, 4),
        (Flaky(9), NO_RETRIES, 1),
        (Flaky(1, Code.INVALID_ARGUMENT), POLICY, 1),
        (Flaky(1, Code.DEADLINE_EXCEEDED), POLICY, 1),
    ],
)
def test_gives_up(flaky: Flaky, policy: RetryPolicy, num_calls: int) -> None:
    with pytest.raises(RequestError, match="busy"):
        call_with_retries(flaky, policy, timeout_s=5)
    assert len(flaky.timeouts) == num_calls


def test_does_not_wait_past_the_deadline() -> None:
    policy = RetryPolicy(max_retries=1000, first_pause_s=0.05, growth=1.0)
    started = time.monotonic()
    with pytest.raises(RequestError):
        call_with_retries(Flaky(10_000), policy, timeout_s=0.3)
    assert time.monotonic() - started < 1.0


def test_pauses_grow_to_a_limit() -> None:
    policy = RetryPolicy(max_retries=50, first_pause_s=0.1, growth=2.0, max_pause_s=0.4)
    for pause, longest in zip(policy.pauses(), [0.1, 0.2, *[0.4] * 48], strict=True):
        assert 0 <= pause <= longest


def test_async() -> None:
    flaky = Flaky(2)

    async def call(timeout_s: float) -> str:
        return flaky(timeout_s)

    assert asyncio.run(call_with_retries_async(call, POLICY, timeout_s=5)) == "answer"
    assert len(flaky.timeouts) == 3
