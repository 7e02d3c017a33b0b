"""Pusher: who may pass, what a server sees, and what is there already."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tfx.types import standard_artifacts

from isthmus.lineage import signing
from isthmus.lineage.config import SigningConfig
from isthmus.lineage.files import SIGNATURE
from isthmus.tfx_pipeline import evaluator, publishing, pusher, remote
from isthmus.tfx_pipeline.anomalies import FINDINGS_FILE, finding
from isthmus.tfx_pipeline.artifacts import ParityReport, Verdict
from isthmus.tfx_pipeline.model_artifact import saved_model_of

Gates = dict[str, Any]


@pytest.fixture
def gates(artifact_at: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gates:
    """The artifacts of gates that were all passed."""
    made = {
        key: artifact_at(artifact_class, tmp_path / key)
        for key, artifact_class in (
            ("anomalies", standard_artifacts.ExampleAnomalies),
            ("parity", ParityReport),
            ("evaluation", standard_artifacts.ModelEvaluation),
            ("model_blessing", standard_artifacts.ModelBlessing),
            ("infra_blessing", standard_artifacts.InfraBlessing),
        )
    }
    for artifact in made.values():
        Path(artifact.uri).mkdir()
    made["anomalies"].splits = ["test"]
    set_anomalies(made, [])
    for key in ("parity", "infra_blessing"):
        Verdict(passed=True, summary="fine").write(made[key])
    made["model_blessing"].set_int_custom_property("blessed", 1)
    # TFMA's files are test_evaluator's subject; here the sentences they lead to are given.
    monkeypatch.setattr(evaluator, "refusals", lambda _: [])
    return made


def set_anomalies(gates: Gates, found: list[dict[str, str]]) -> None:
    """Leave what ExampleValidator found, as it does."""
    Path(gates["anomalies"].uri, FINDINGS_FILE).write_text(json.dumps({"anomalies": found, "compared": []}))


@pytest.fixture
def run_pusher(
    execute: Callable[..., None], artifact_at: Callable[..., Any], tmp_path: Path
) -> Callable[..., Any]:
    """Run the component; returns the PushedModel artifact."""

    def run(model: Any, gates: Gates, verification_key: Path | str = "", base: str | None = None) -> Any:
        pushed = artifact_at(standard_artifacts.PushedModel, tmp_path / "pushed")
        execute(
            pusher.Executor,
            inputs={"model": model, **gates},
            outputs={"pushed_model": pushed},
            properties={
                "base_directory": base or str(tmp_path / "serving"),
                "verification_key": str(verification_key),
            },
        )
        return pushed

    return run


def test_pushes_what_every_gate_has_passed(
    make_model: Callable[..., Any], gates: Gates, run_pusher: Callable[..., Any], tmp_path: Path
) -> None:
    pushed = run_pusher(make_model(), gates)
    assert pushed.get_int_custom_property("pushed") == 1
    assert pushed.get_int_custom_property(pusher.FRESH) == 1
    (version,) = (tmp_path / "serving").iterdir()
    assert pushed.get_string_custom_property("pushed_destination") == str(version)
    assert pushed.get_string_custom_property("pushed_version") == version.name
    assert (version / "assets.extra" / "manifest.json").is_file()


def test_the_same_content_is_pushed_once(
    make_model: Callable[..., Any], gates: Gates, run_pusher: Callable[..., Any], tmp_path: Path
) -> None:
    first = run_pusher(make_model(), gates)
    second = run_pusher(make_model(), gates)
    assert second.get_int_custom_property("pushed") == 1
    assert second.get_int_custom_property(pusher.FRESH) == 0
    for key in ("pushed_destination", "pushed_version"):
        assert second.get_string_custom_property(key) == first.get_string_custom_property(key)
    assert len(list((tmp_path / "serving").iterdir())) == 1


@pytest.mark.parametrize(
    ("refuse", "reason"),
    [
        (
            lambda gates: set_anomalies(
                gates, [finding("test split", "image/class/text", "a known class", "others")]
            ),
            "ExampleValidator: test split, image/class/text: expected a known class, found others",
        ),
        (
            lambda gates: Verdict(passed=False, summary="", reasons=["too far"]).write(gates["parity"]),
            "ParityValidator: too far",
        ),
        (
            lambda gates: Verdict(passed=False, summary="", reasons=["it died"]).write(
                gates["infra_blessing"]
            ),
            "ServerValidator: it died",
        ),
        (
            lambda gates: gates["model_blessing"].set_int_custom_property("blessed", 0),
            "Evaluator: the model is not blessed",
        ),
        (
            lambda gates: gates["infra_blessing"].set_int_custom_property("blessed", 0),
            "ServerValidator: the model is not blessed",
        ),
        (
            lambda gates: gates["parity"].set_int_custom_property("blessed", 0),
            "ParityValidator: the model is not blessed",
        ),
    ],
)
def test_one_refusal_is_enough(
    refuse: Callable[[Gates], None],
    reason: str,
    make_model: Callable[..., Any],
    gates: Gates,
    run_pusher: Callable[..., Any],
    tmp_path: Path,
) -> None:
    refuse(gates)
    pushed = run_pusher(make_model(), gates)
    assert pushed.get_int_custom_property("pushed") == 0
    assert json.loads(pushed.get_string_custom_property(pusher.NOT_PUSHED_BECAUSE)) == [reason]
    assert not (tmp_path / "serving").exists()


def make_keys(folder: Path) -> SigningConfig:
    """A key pair."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / "signing.pem", folder / "signing.pub"
    pem = serialization.Encoding.PEM
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return SigningConfig(key=private, verification_key=public)


@pytest.fixture
def keys(tmp_path: Path) -> SigningConfig:
    """The key pair that the pipeline trusts."""
    return make_keys(tmp_path / "keys")


def test_nothing_is_pushed_that_the_key_did_not_sign(
    make_model: Callable[..., Any],
    gates: Gates,
    run_pusher: Callable[..., Any],
    tmp_path: Path,
    keys: SigningConfig,
) -> None:
    model = make_model()
    refused = run_pusher(model, gates, keys.verification_key)
    assert refused.get_int_custom_property("pushed") == 0
    (reason,) = json.loads(refused.get_string_custom_property(pusher.NOT_PUSHED_BECAUSE))
    assert reason.startswith("Signature: ")
    assert "is not signed" in reason
    assert not (tmp_path / "serving").exists()
    # Pushed before anybody asked for signatures: the signed copy of the same content goes beside it.
    before = run_pusher(model, gates)
    signing.sign(saved_model_of(model), keys)
    after = run_pusher(model, gates, keys.verification_key)
    versions = [pushed.get_string_custom_property("pushed_version") for pushed in (before, after)]
    assert int(versions[1]) > int(versions[0])
    served = tmp_path / "serving" / versions[1]
    assert signing.refusal(served, keys.verification_key) is None
    again = run_pusher(model, gates, keys.verification_key)
    assert again.get_int_custom_property(pusher.FRESH) == 0
    (saved_model_of(model) / "assets" / "labels.txt").write_text("others")
    tampered = run_pusher(model, gates, keys.verification_key)
    (reason,) = json.loads(tampered.get_string_custom_property(pusher.NOT_PUSHED_BECAUSE))
    assert reason.endswith("was changed after it was signed: assets/labels.txt was changed")


def test_a_copy_in_an_object_store_counts_only_with_the_keys_signature(
    make_model: Callable[..., Any],
    gates: Gates,
    run_pusher: Callable[..., Any],
    tmp_path: Path,
    bucket: str,
    keys: SigningConfig,
) -> None:
    """It has the same digest: the signature is no part of it."""
    base = f"{bucket}/{tmp_path.name}/colours"
    model = make_model()
    run_pusher(model, gates, base=base)
    stranger = make_keys(tmp_path / "stranger")
    signing.sign(saved_model_of(model), stranger)
    run_pusher(model, gates, stranger.verification_key, base=base)
    signing.sign(saved_model_of(model), keys)
    signed = run_pusher(model, gates, keys.verification_key, base=base)
    assert signed.get_int_custom_property(pusher.FRESH) == 1
    unsigned, strangers, ours = sorted(publishing.versions(base))
    assert signed.get_string_custom_property("pushed_version") == str(ours)
    for version, name in ((strangers, "stranger"), (ours, "ours")):
        remote.fetch_tree(remote.join(base, str(version)), tmp_path / "fetched" / name)
    assert not remote.exists(remote.join(base, str(unsigned), SIGNATURE))
    assert signing.refusal(tmp_path / "fetched" / "stranger", keys.verification_key) is not None
    assert signing.refusal(tmp_path / "fetched" / "ours", keys.verification_key) is None
    again = run_pusher(model, gates, keys.verification_key, base=base)
    assert again.get_int_custom_property(pusher.FRESH) == 0
    assert again.get_string_custom_property("pushed_version") == str(ours)


def test_evaluators_sentences_are_reasons(
    make_model: Callable[..., Any],
    gates: Gates,
    run_pusher: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluator, "refusals", lambda _: ["accuracy is low"])
    pushed = run_pusher(make_model(), gates)
    assert json.loads(pushed.get_string_custom_property(pusher.NOT_PUSHED_BECAUSE)) == [
        "Evaluator: accuracy is low"
    ]


@pytest.mark.parametrize("gate", ["anomalies", "parity", "evaluation", "model_blessing", "infra_blessing"])
def test_a_gate_that_is_not_wired_stops_the_push(
    gate: str, make_model: Callable[..., Any], gates: Gates, run_pusher: Callable[..., Any], tmp_path: Path
) -> None:
    del gates[gate]
    with pytest.raises(KeyError, match=gate):
        run_pusher(make_model(), gates)
    assert not (tmp_path / "serving").exists()
