"""`isthmus lineage`: the chain of a name, a path, a digest or a running server, and whether its links hold."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.cli.errors import UsageError

if TYPE_CHECKING:
    from isthmus.lineage.chain import Chain
    from isthmus.lineage.verify import LinkCheck


def run(arguments: argparse.Namespace) -> int:
    """Prints the chain; 1 where `--verify` finds a broken link."""
    from isthmus.lineage import render
    from isthmus.lineage.verify import verify, worst

    chain = _chain(arguments)
    checks = verify(chain, key=arguments.verification_key) if arguments.verify else []
    written = [*_write_page(arguments, chain, checks), *_write_bom(arguments, chain)]
    if arguments.json:
        answer = chain.to_dict()
        if arguments.verify:
            answer = {**answer, "checks": [check.to_dict() for check in checks]}
        print(json.dumps(answer, indent=2))
    else:
        print(render.tree(chain))
        if arguments.verify:
            print(render.checks(checks))
        for path in written:
            print(f"written: {path}")
    return 1 if arguments.verify and worst(checks) == "broken" else 0


def _write_page(arguments: argparse.Namespace, chain: Chain, checks: list[LinkCheck]) -> list[Path]:
    if arguments.html is None:
        return []
    from isthmus.lineage import page
    from isthmus.lineage.files import write_text

    write_text(arguments.html, page.html(chain, checks))
    return [arguments.html]


def _write_bom(arguments: argparse.Namespace, chain: Chain) -> list[Path]:
    if arguments.bom is None:
        return []
    from isthmus.lineage import bom
    from isthmus.lineage.files import write_json

    write_json(arguments.bom, bom.bom(chain))
    return [arguments.bom]


def _chain(arguments: argparse.Namespace) -> Chain:
    from isthmus.lineage import query

    if (arguments.subject is None) == (arguments.server is None):
        raise UsageError("name a SUBJECT, or a running server with --server HOST:PORT --model NAME")
    if arguments.server is None:
        return query.lineage(
            arguments.subject, home=arguments.home, tracking_uri=arguments.tracking_uri, at=arguments.at
        )
    if arguments.model is None:
        raise UsageError("--server serves several models: name one with --model NAME")
    return query.lineage_of_manifest(
        _served_manifest(arguments.server, arguments.model),
        subject=f"{arguments.server} {arguments.model}",
        home=arguments.home,
        tracking_uri=arguments.tracking_uri,
    )


def _served_manifest(address: str, model: str) -> dict[str, Any]:
    """Asks the signature `manifest` over gRPC; stock TensorFlow Serving answers it as well."""
    from isthmus.serving.client import GrpcClient

    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal():
        raise UsageError(f"--server {address!r}: write HOST:PORT with the gRPC port, such as localhost:8500")
    with GrpcClient(host=host, port=int(port)) as client:
        answer = client.predict(model, {"inputs": [b""]}, signature="manifest")
    manifest: dict[str, Any] = json.loads(answer["manifest"][0])
    return manifest
