"""Signatures of OpenSSF model-signing, offline: with a key pair or with certificates.

One signature, `saved_model/assets.extra/model.sig`, covers what is served: every other file of the SavedModel
folder, whatever the folder is called, and nothing may be added. Among those files is the manifest with the SHA-256
of every file of the bundle, so the same signature vouches for the ONNX file and the reference images, too. It is a
DSSE envelope with an in-toto statement, and `model_signing verify key` reads it as well.

This module is in the lowest layer (the server uses it): it imports `files`, `errors` and `config` only.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

from isthmus.lineage.config import SigningConfig
from isthmus.lineage.errors import LineageError
from isthmus.lineage.files import SIGNATURE, sha256_file, walk_files

_ENVIRONMENT = {
    "key": "ISTHMUS_SIGNING_KEY",
    "certificate": "ISTHMUS_SIGNING_CERTIFICATE",
    "verification_key": "ISTHMUS_VERIFICATION_KEY",
}
_PASSWORD = "ISTHMUS_SIGNING_PASSWORD"
_ONLINE = "model_signing._signing.sign_sigstore"


class SigningError(LineageError):
    """A key or a certificate that cannot be used."""


def configured(config: SigningConfig | None = None) -> SigningConfig:
    """A recipe's `signing` section, completed from the environment: a variable wins over the recipe."""
    given: dict[str, Any] = {
        field: Path(path) for field, name in _ENVIRONMENT.items() if (path := os.environ.get(name))
    }
    return replace(config or SigningConfig(), **given)


def is_signed(saved_model: Path) -> bool:
    """Whether the folder has a signature; says nothing about whose."""
    return (saved_model / SIGNATURE).is_file()


def is_usable(saved_model: Path, config: SigningConfig) -> bool:
    """Whether an earlier export may stand where this configuration would sign a new one.

    Raises SigningError when the verification key cannot be used.
    """
    if config.key is None:
        return True
    if config.verification_key is not None:
        return refusal(saved_model, config.verification_key) is None
    return is_signed(saved_model)


def sign(saved_model: Path, config: SigningConfig) -> Path:
    """Sign a SavedModel folder with the configured key and return the signature's path; an earlier one is replaced.

    Raises:
        SigningError: there is no key, or it cannot be used, or `verification_key` does not belong to it.
    """
    signer = _signer(config)
    target = saved_model / SIGNATURE
    target.parent.mkdir(exist_ok=True)
    beside = target.with_name(f".{target.name}.tmp")
    signer.sign(saved_model, beside)
    os.replace(beside, target)
    if config.verification_key is not None and (text := refusal(saved_model, config.verification_key)):
        target.unlink()
        raise SigningError(
            f"signed with {config.key}, and {text}: give the verification key that belongs to it"
        )
    return target


def refusal(saved_model: Path, key: Path) -> str | None:
    """Why a SavedModel folder must not be used, in one clause that names what is wrong; None: its signature holds.

    Args:
        saved_model: the bundle's saved_model/, or a pushed version.
        key: PEM file with an EC public key, or with the certificates that the signer's must descend from.

    Raises:
        SigningError: the key itself cannot be used.
    """
    verifier = _verifier(key)
    if not is_signed(saved_model):
        return f"{saved_model} is not signed (no {SIGNATURE})"
    try:
        signed = _signed_digests(saved_model / SIGNATURE)
    except (OSError, ValueError, KeyError, TypeError):
        return f"the signature of {saved_model} cannot be read"
    try:
        verifier.verify(saved_model, saved_model / SIGNATURE)
        mismatch = False
    except Exception as error:  # noqa: BLE001 - whatever the library raises, the signature does not hold
        mismatch = "Signature mismatch" in str(error)
        if not mismatch:
            return f"{saved_model} is not signed by {key} ({_line(error)})"
    # Its own comparison leaves out what the statement says to ignore; ours leaves out the signature alone.
    changed = _differences(saved_model, signed)
    if changed or mismatch:
        listed = "; ".join(changed[:5]) or "its files changed while they were read"
        return f"{saved_model} was changed after it was signed: {listed}"
    return None


def check_key(key: Path) -> None:
    """Raises SigningError unless `key` can verify signatures."""
    _verifier(key)


def check(config: SigningConfig) -> None:
    """Raises SigningError unless every key that is configured can be used; before any work is done."""
    if config.key is not None:
        _signer(config)
    if config.verification_key is not None:
        _verifier(config.verification_key)


def _signer(config: SigningConfig) -> Any:
    if config.key is None:
        raise SigningError(f"no signing key is configured; set signing.key or {_ENVIRONMENT['key']}")
    library = _library()
    password = os.environ.get(_PASSWORD)
    signer = library.signing.Config().set_hashing_config(_hashing(library))
    try:
        if config.certificate is None:
            # The library hands the password on to `cryptography`, which wants bytes.
            return signer.use_elliptic_key_signer(
                private_key=config.key, password=password.encode() if password else None
            )
        return signer.use_certificate_signer(
            private_key=config.key,
            signing_certificate=config.certificate,
            # The library cannot read an empty chain; the certificate itself adds nothing to it.
            certificate_chain=config.certificate_chain or (config.certificate,),
        )
    except (OSError, ValueError, TypeError) as error:
        raise SigningError(
            f"cannot sign with {config.key}: {_line(error)}. Give an EC private key in PEM "
            f"(P-256, P-384 or P-521); its password, if it has one, in {_PASSWORD}"
        ) from error


def _verifier(key: Path) -> Any:
    try:
        text = key.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise SigningError(f"cannot read the verification key {key}: {_line(error)}") from error
    library = _library()
    verifier = library.verifying.Config().set_hashing_config(_hashing(library))
    try:
        if "BEGIN CERTIFICATE" in text:
            return verifier.use_certificate_verifier(certificate_chain=[key])
        return verifier.use_elliptic_key_verifier(public_key=key)
    except (ValueError, TypeError, AttributeError) as error:
        raise SigningError(
            f"{key} verifies nothing: {_line(error)}. Give an EC public key or certificates, in PEM"
        ) from error


def _hashing(library: Any) -> Any:
    """Every file counts, those of git as well, which the library leaves out by default."""
    return library.hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _signed_digests(signature: Path) -> dict[str, str]:
    """{relative path: SHA-256} of the statement in a signature file; whoever wrote it.

    Raises ValueError for a signature that model-signing made before its version 1.0: it names no key.
    """
    bundle = json.loads(signature.read_text(encoding="utf-8"))
    material = bundle["verificationMaterial"]
    if not material.get("x509CertificateChain") and not (material.get("publicKey") or {}).get("hint"):
        raise ValueError("names no key")
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return {row["name"]: row["digest"] for row in statement["predicate"]["resources"]}


def _differences(saved_model: Path, signed: dict[str, str]) -> list[str]:
    present = dict(walk_files(saved_model, exclude=[SIGNATURE]))
    problems = {name: f"{name} is missing" for name in signed.keys() - present.keys()}
    problems |= {name: f"{name} does not belong" for name in present.keys() - signed.keys()}
    problems |= {
        name: f"{name} was changed"
        for name in present.keys() & signed.keys()
        if sha256_file(present[name]) != signed[name]
    }
    return [problems[name] for name in sorted(problems)]


def _line(error: BaseException) -> str:
    """An error's text on one line, its class where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _library() -> Any:
    """model_signing, without the online client that it imports and that keys and certificates do not need.

    sigstore's client brings requests, tuf and grpc with it: 0.47 s of CPU instead of 0.13 s, and code that could
    reach the network in a server that must not. An empty module in its place keeps all of it out.
    """
    if "model_signing" not in sys.modules:
        sys.modules.setdefault(_ONLINE, types.ModuleType(_ONLINE, "Left out by isthmus.lineage.signing."))
    import model_signing

    return model_signing
