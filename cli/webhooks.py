"""`isthmus registry webhook` and `listen`: MLflow tells of moves, and a command follows each."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys

from isthmus.cli.errors import UsageError


def add_webhook_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `webhook`: without --url and --remove it lists."""
    parser.add_argument("--url", metavar="URL", help="who is told; a webhook of this name is replaced")
    parser.add_argument(
        "--on",
        action="append",
        default=[],
        metavar="EVENT",
        help="may be repeated; default: model_version_alias.created, which a promotion and a rollback are",
    )
    parser.add_argument("--remove", action="store_true", help="forget the webhook")
    _add_secret(parser)


def add_listen_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `listen`."""
    parser.add_argument(
        "--on",
        action="append",
        nargs=2,
        default=[],
        metavar=("EVENT", "COMMAND"),
        help="run COMMAND for EVENT; {name} {version} {alias} in it stand for the event's; may be repeated",
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: %(default)s")
    parser.add_argument(
        "--port", type=int, default=9000, metavar="N", help="default: %(default)s; 0: any free one"
    )
    _add_secret(parser)


def _add_secret(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--secret-env",
        default="ISTHMUS_WEBHOOK_SECRET",
        metavar="VARIABLE",
        help="environment variable with the shared secret; default: %(default)s",
    )


def webhook(arguments: argparse.Namespace) -> int:
    """Add, remove, or show the webhooks of the store."""
    from isthmus.lineage import webhooks

    if arguments.remove:
        print(
            f"webhook {arguments.name}: "
            + ("removed" if webhooks.remove(arguments.name) else "there was none")
        )
        return 0
    if arguments.url is not None:
        events = arguments.on or ["model_version_alias.created"]
        webhooks.add(arguments.name, url=arguments.url, events=events, secret=_secret(arguments))
        print(f"webhook {arguments.name}: {arguments.url} is told of {', '.join(events)}")
        return 0
    found = [
        {
            "name": each.name,
            "url": each.url,
            "events": [str(event) for event in each.events],
            "status": str(each.status),
        }
        for each in webhooks.registered()
    ]
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for each in found:
            print(f"{each['name']}  {each['url']}  {', '.join(each['events'])}  {each['status']}")
    return 0


def listen(arguments: argparse.Namespace) -> int:
    """Receive until SIGTERM or Ctrl-C; what was taken is finished first."""
    from isthmus.lineage import webhooks

    if not arguments.on:
        raise UsageError("listen has nothing to do: give --on EVENT COMMAND")
    commands, secret = webhooks.parse([tuple(pair) for pair in arguments.on]), _secret(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        receiver = webhooks.Receiver(
            secret=secret, commands=commands, host=arguments.host, port=arguments.port
        )
    except OSError as problem:
        raise UsageError(
            f"cannot listen on {arguments.host}:{arguments.port}: {problem.strerror}"
        ) from problem
    with receiver:
        print(f"listening on {receiver.url}", flush=True)
        receiver.wait()
    return 0


def _secret(arguments: argparse.Namespace) -> str:
    secret = os.environ.get(arguments.secret_env)
    if not secret:
        raise UsageError(
            f"the environment variable {arguments.secret_env} with the webhook's secret is not set"
        )
    return secret
