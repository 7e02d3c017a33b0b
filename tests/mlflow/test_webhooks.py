"""What the receiver believes: signed with its secret, fresh, not repeated; and what it then does."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import requests

from isthmus.lineage import webhooks
from isthmus.lineage.errors import LineageError
from isthmus.lineage.webhooks import Receiver, signature

SECRET = "a-secret-for-the-test-only"


def delivery(
    data: dict[str, str], *, age_s: float = 0, delivery_id: str = "one", secret: str = SECRET
) -> tuple[dict[str, str], bytes]:
    body = json.dumps({"entity": "model_version_alias", "action": "created", "data": data}).encode()
    timestamp = str(int(time.time() - age_s))
    return {
        "X-MLflow-Delivery-Id": delivery_id,
        "X-MLflow-Timestamp": timestamp,
        "X-MLflow-Signature": signature(secret, delivery=delivery_id, timestamp=timestamp, body=body),
    }, body


def test_the_signature_is_mlflows_own() -> None:
    from mlflow.webhooks.delivery import _generate_hmac_signature

    ours = signature(SECRET, delivery="abc", timestamp="123", body=b'{"a": 1}')
    assert ours == _generate_hmac_signature(SECRET, "abc", "123", '{"a": 1}')


def test_what_is_not_signed_fresh_and_new_is_not_acted_on(tmp_path: Path) -> None:
    told = tmp_path / "told"
    write = f"import sys; open({str(told)!r}, 'a').write(repr(sys.argv[1:]) + chr(10))"
    commands = {"model_version_alias.created": [sys.executable, "-c", write, "{name}", "as {alias}"]}
    data = {"name": "digits; rm -rf /", "alias": "{version}", "version": "3"}
    with Receiver(secret=SECRET, commands=commands) as receiver:
        headers, body = delivery(data)
        refused = [
            (delivery(data, secret="another-secret-for-it"), 401),
            (delivery(data, age_s=1000), 401),
            ((headers, body + b" "), 401),
            (({}, body), 401),
        ]
        for (given, content), status in refused:
            assert requests.post(receiver.url, data=content, headers=given, timeout=10).status_code == status
        answers = [
            requests.post(receiver.url, data=body, headers=headers, timeout=10).status_code for _ in range(2)
        ]
        assert answers == [202, 200]
        nothing, text = b"[]", "v"
        stamp = str(int(time.time()))
        signed = {
            "X-MLflow-Delivery-Id": text,
            "X-MLflow-Timestamp": stamp,
            "X-MLflow-Signature": signature(SECRET, delivery=text, timestamp=stamp, body=nothing),
        }
        assert requests.post(receiver.url, data=nothing, headers=signed, timeout=10).status_code == 400
    # One word stays one word, and braces inside an event stay as they are.
    assert told.read_text() == "['digits; rm -rf /', 'as {version}']\n"
    assert [code for _, code in receiver.done] == [0]


def test_a_command_that_fails_does_not_stop_the_next(tmp_path: Path) -> None:
    with Receiver(
        secret=SECRET, commands={"model_version_alias.created": [str(tmp_path / "missing")]}
    ) as receiver:
        for number in range(2):
            headers, body = delivery({"name": "digits"}, delivery_id=str(number))
            assert requests.post(receiver.url, data=body, headers=headers, timeout=10).status_code == 202
    assert [code for _, code in receiver.done] == [127, 127]


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        (
            ("model_version.promoted", "true"),
            "is no event of the registry; allowed: registered_model.created",
        ),
        (("model_version.created", " "), "the command of model_version.created is empty"),
        (("model_version.created", "'open"), "is no command line"),
    ],
)
def test_what_cannot_be_listened_for_is_one_line(pair: tuple[str, str], text: str) -> None:
    with pytest.raises(LineageError, match=text):
        webhooks.parse([pair])
