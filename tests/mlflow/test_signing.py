"""Signatures: whatever is changed, added or taken away after signing is refused in one line that names it."""

from __future__ import annotations

import base64
import datetime
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from isthmus.lineage import query, registry, signing, verify
from isthmus.lineage.config import SigningConfig
from isthmus.lineage.errors import PromotionRefused
from isthmus.lineage.files import SIGNATURE, sha256_file
from isthmus.lineage.signing import SigningError


def write_private(path: Path, key: ec.EllipticCurvePrivateKey, *, password: bytes | None = None) -> Path:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    return path


def write_public(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(key.public_key().public_bytes(encoding, form))
    return path


@pytest.fixture
def keys(tmp_path: Path) -> SigningConfig:
    """A key pair, as `openssl` would write it."""
    key = ec.generate_private_key(ec.SECP256R1())
    return SigningConfig(
        key=write_private(tmp_path / "signing.pem", key),
        verification_key=write_public(tmp_path / "signing.pub", key),
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "saved_model"
    (folder / "assets").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "assets" / "labels.txt").write_text("0\n1\n")
    return folder


def test_a_signature_holds_wherever_the_folder_is_taken(model, keys, tmp_path):
    assert signing.refusal(model, keys.verification_key).endswith(f"is not signed (no {SIGNATURE})")
    assert signing.sign(model, keys) == model / SIGNATURE
    assert signing.is_signed(model)
    assert signing.refusal(model, keys.verification_key) is None
    moved = model.rename(tmp_path / "17")
    assert signing.refusal(moved, keys.verification_key) is None
    # Signing again replaces the signature; it does not sign it.
    signing.sign(moved, keys)
    assert signing.refusal(moved, keys.verification_key) is None


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda model: flip(model / "saved_model.pb"), "saved_model.pb was changed"),
        (lambda model: flip(model / "assets/labels.txt"), "assets/labels.txt was changed"),
        (lambda model: (model / "assets/labels.txt").unlink(), "assets/labels.txt is missing"),
        (lambda model: (model / "batching_params.pbtxt").touch(), "batching_params.pbtxt does not belong"),
        (lambda model: (model / ".gitignore").touch(), ".gitignore does not belong"),
        (lambda model: (model / SIGNATURE).unlink(), "is not signed"),
        (lambda model: (model / SIGNATURE).write_text("{}"), "the signature of .* cannot be read"),
        (lambda model: flip(model / SIGNATURE), "cannot be read|is not signed by|was changed"),
    ],
)
def test_every_change_is_refused_and_named(model, keys, change, says):
    signing.sign(model, keys)
    change(model)
    refusal = signing.refusal(model, keys.verification_key)
    assert refusal is not None
    assert "\n" not in refusal
    assert re.search(says, refusal), refusal


def test_another_key_and_a_statement_rewritten_for_other_files_are_refused(model, keys, tmp_path):
    signing.sign(model, keys)
    stranger = write_public(tmp_path / "stranger.pub", ec.generate_private_key(ec.SECP256R1()))
    assert f"is not signed by {stranger}" in signing.refusal(model, stranger)
    # The attacker changes a file and puts its digest into the statement, which is not encrypted.
    flip(model / "saved_model.pb")
    bundle = json.loads((model / SIGNATURE).read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    for row in statement["predicate"]["resources"]:
        if row["name"] == "saved_model.pb":
            row["digest"] = sha256_file(model / "saved_model.pb")
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    (model / SIGNATURE).write_text(json.dumps(bundle))
    assert "is not signed by" in signing.refusal(model, keys.verification_key)


def certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    is_authority: bool,
) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    usage = {
        "digital_signature": not is_authority,
        "key_cert_sign": is_authority,
        "crl_sign": is_authority,
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": False,
        "encipher_only": False,
        "decipher_only": False,
    }
    names = {
        each: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each)]) for each in (subject, issuer)
    }
    return (
        x509.CertificateBuilder()
        .subject_name(names[subject])
        .issuer_name(names[issuer])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .sign(issuer_key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


@pytest.mark.filterwarnings("ignore:Properties that return a na.ve datetime object:DeprecationWarning")
def test_certificates(model, tmp_path):
    root, signer = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    (tmp_path / "root.pem").write_bytes(
        certificate("root", root, issuer="root", issuer_key=root, is_authority=True)
    )
    (tmp_path / "signer.crt").write_bytes(
        certificate("signer", signer, issuer="root", issuer_key=root, is_authority=False)
    )
    config = SigningConfig(
        key=write_private(tmp_path / "signer.pem", signer),
        certificate=tmp_path / "signer.crt",
        verification_key=tmp_path / "root.pem",
    )
    signing.sign(model, config)
    assert signing.refusal(model, tmp_path / "root.pem") is None
    other = ec.generate_private_key(ec.SECP384R1())
    (tmp_path / "other.pem").write_bytes(
        certificate("root", other, issuer="root", issuer_key=other, is_authority=True)
    )
    assert "is not signed by" in signing.refusal(model, tmp_path / "other.pem")
    flip(model / "saved_model.pb")
    assert "saved_model.pb was changed" in signing.refusal(model, tmp_path / "root.pem")


def test_a_key_with_a_password(model, tmp_path, monkeypatch):
    key = ec.generate_private_key(ec.SECP256R1())
    config = SigningConfig(key=write_private(tmp_path / "locked.pem", key, password=b"open sesame"))
    with pytest.raises(SigningError, match=r"cannot sign with .*locked.pem: .* in ISTHMUS_SIGNING_PASSWORD"):
        signing.sign(model, config)
    monkeypatch.setenv("ISTHMUS_SIGNING_PASSWORD", "open sesame")
    signing.sign(model, config)
    assert signing.refusal(model, write_public(tmp_path / "locked.pub", key)) is None


def test_unusable_keys_are_named_before_any_work(keys, tmp_path):
    text = tmp_path / "no.pem"
    text.write_text("no key")
    with pytest.raises(SigningError, match=r"cannot sign with .*no.pem: .* Give an EC private key"):
        signing.check(SigningConfig(key=text))
    with pytest.raises(SigningError, match=r"no.pem verifies nothing: .* Give an EC public key"):
        signing.check(SigningConfig(verification_key=text))
    with pytest.raises(SigningError, match=r"cannot read the verification key .*missing.pub: .*No such file"):
        signing.check_key(tmp_path / "missing.pub")
    signing.check(keys)
    with pytest.raises(ValueError, match=r"certificate_chain goes with signing.certificate"):
        SigningConfig(certificate_chain=(text,))


def test_a_pair_that_is_none_is_found_when_it_signs(model, keys, tmp_path):
    other = write_public(tmp_path / "other.pub", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(SigningError, match="give the verification key that belongs to it"):
        signing.sign(model, SigningConfig(key=keys.key, verification_key=other))
    assert not signing.is_signed(model)


def test_the_environment_wins_over_the_recipe(keys, monkeypatch):
    recipe = SigningConfig(key=Path("recipe.pem"))
    assert signing.configured(recipe) == recipe
    monkeypatch.setenv("ISTHMUS_SIGNING_KEY", str(keys.key))
    monkeypatch.setenv("ISTHMUS_VERIFICATION_KEY", str(keys.verification_key))
    assert signing.configured(recipe) == keys
    assert signing.configured() == keys


def test_an_earlier_export_may_stand_only_with_the_signature_that_a_new_one_would_have(model, keys):
    unasked, unverified = SigningConfig(), SigningConfig(key=keys.key)
    assert signing.is_usable(model, unasked)
    assert not signing.is_usable(model, unverified)
    assert not signing.is_usable(model, keys)
    signing.sign(model, keys)
    assert signing.is_usable(model, unverified)
    assert signing.is_usable(model, keys)


def test_signing_brings_no_client_of_the_network_and_the_library_itself_agrees(model, keys):
    signing.sign(model, keys)
    program = f"""
import sys
from pathlib import Path
from isthmus.lineage import signing
assert signing.refusal(Path({str(model)!r}), Path({str(keys.verification_key)!r})) is None
print(*sorted({{name.split(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = set(done.stdout.split())
    assert "model_signing" in loaded
    assert not loaded & {"sigstore", "requests", "urllib3", "tuf", "grpc", "mlflow", "numpy"}
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(model)]
    options = ["--signature", str(model / SIGNATURE), "--public_key", str(keys.verification_key)]
    stock = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=120)
    assert stock.returncode == 0, stock.stdout + stock.stderr


@pytest.fixture
def tell_signed(tell: Callable, keys: SigningConfig) -> Callable:
    """As `tell`; the bundle and what is pushed from it are signed."""

    def run(content: str, **changes):
        story = tell(content, **changes)
        for folder in (story.bundle / "saved_model", story.pushed):
            signing.sign(folder, keys)
        return story

    return run


def test_promotion_and_rollback_want_the_signature(tell, tell_signed, keys, monkeypatch):
    tell_signed("a")
    second = tell_signed("b")
    monkeypatch.setenv("ISTHMUS_VERIFICATION_KEY", str(keys.verification_key))
    move = registry.promote("digits")
    assert {verdict.gate: verdict.text for verdict in move.verdicts}["signature"].startswith("signed by")
    assert registry.history("digits")[-1].verdicts["signature"] == f"signed by {keys.verification_key}"
    registry.rollback("digits")
    (second.pushed / SIGNATURE).unlink()
    with pytest.raises(PromotionRefused, match=r"signature: .*is not signed") as refused:
        registry.promote("digits", second.version.version)
    assert len(refused.value.reasons) == 1
    # Where a key is asked for, the first version is no champion either, unless it is signed.
    assert tell("c", name="other").version.aliases == ("challenger",)


def test_the_recipe_in_the_manifest_asks_as_well(tell, keys):
    tell("a")
    tell("b", recipe={"signing": {"verification_key": str(keys.verification_key)}})
    with pytest.raises(PromotionRefused, match=r"signature: .*is not signed"):
        registry.promote("digits")


def test_verify_has_the_signature_as_a_link(tell_signed, keys, home):
    story = tell_signed("a")
    chain = query.lineage("digits", home=home)
    links = {check.link: check for check in verify.verify(chain, key=keys.verification_key)}
    served, bundle = links["signature → served files"], links["signature → bundle files"]
    assert (served.status, bundle.status) == ("holds", "holds")
    unasked = {check.link: check for check in verify.verify(chain)}
    assert unasked["signature → served files"].status == "unknown"
    flip(story.pushed / SIGNATURE)
    links = {check.link: check for check in verify.verify(chain, key=keys.verification_key)}
    assert links["signature → served files"].status == "broken"
    assert links["version → served files"].status == "holds"
