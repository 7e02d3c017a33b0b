"""From anything to its chain: a complete story in a real store."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime

import pytest

from isthmus.lineage import query, registry, render
from isthmus.lineage.errors import LineageError
from isthmus.lineage.files import sha256_file


def test_chain_of_the_champion_reaches_commit_and_data(told):
    story = told[0]
    chain = query.lineage("models:/digits@champion", home=told[0].home)
    assert chain.commits == [story.manifest["training"]["source"]["commit"]]
    assert chain.data_digests == [story.data_digest]
    kinds = [
        chain.root.kind,
        *(chain.root.find(kind)[0].kind for kind in ("served", "saved_model", "onnx", "weights")),
    ]
    assert kinds == ["version", "served", "saved_model", "onnx", "weights"]
    assert chain.root.find("onnx")[0].id == story.manifest["export"]["onnx_sha256"]
    assert chain.root.find("training")[0].id == story.train_run
    assert chain.root.find("export")[0].id == story.export_run
    assert chain.root.find("evaluation")[0].facts["accuracy"] == 0.98
    assert json.loads(json.dumps(chain.to_dict()))["chain"]["id"] == "digits/1"


def test_tree_is_readable(told):
    story = told[0]
    lines = render.tree(query.lineage("models:/digits/1", home=told[0].home)).splitlines()
    assert lines[0].startswith("digits version 1 · champion · registered 20")
    assert "champion since" in lines[0]
    assert lines[1] == f"├─ served from {story.pushed} · version 1"
    assert lines[-1].strip().startswith(f"└─ data {story.data_digest[:12]} · digits · source made · train 2")
    assert any("code c0ffeec0ffee · clean" in line for line in lines)
    assert any(line.startswith("   └─ ONNX ") for line in lines)


@pytest.mark.parametrize(
    "subject",
    ["models:/digits/1", "models:/digits@champion", "digits@champion", "digits/1", "digits"],
)
def test_every_way_to_name_a_version(told, subject):
    assert query.lineage(subject, home=told[0].home).root.id == "digits/1"


def test_every_folder_and_file_leads_to_the_version(told):
    story = told[0]
    for path in (story.pushed, story.bundle, story.bundle / "saved_model"):
        chain = query.lineage(str(path), home=told[0].home)
        assert chain.root.id == "digits/1"
    for path in (story.checkpoint, story.checkpoint / "model.safetensors", story.bundle / "model.onnx"):
        chain = query.lineage(str(path), home=told[0].home)
        assert [child.id for child in chain.root.children] == ["digits/1"]
    assert query.lineage(str(story.home / "serving" / "digits"), home=told[0].home).root.id == "digits/2"


def test_digest_commit_and_ids_lead_to_every_version_they_made(told):
    story = told[0]
    both = ["digits/1", "digits/2"]
    for subject in (
        story.data_digest,
        story.data_digest[:10],
        str(story.data),
        "c0ffee" * 6 + "c0ff",
        "c0ffeec0",
    ):
        chain = query.lineage(subject, home=told[0].home)
        assert [child.id for child in chain.root.children] == both, subject
    onnx = story.manifest["export"]["onnx_sha256"]
    for subject in (onnx, story.train_run, story.manifest["export"]["mlflow"]["saved_model_id"]):
        assert [child.id for child in query.lineage(subject, home=told[0].home).root.children] == [
            "digits/1"
        ], subject


def test_runs_that_led_to_no_version_are_listed_too(tell, home):
    story = tell("a")
    client = registry.store_client()
    client.delete_model_version("digits", "1")
    root = query.lineage(story.data_digest, home=home).root
    assert [(child.kind, child.id, child.facts["registered"]) for child in root.children] == [
        ("training", story.train_run, "no")
    ]


def test_unregistered_bundle_checkpoint_and_pushed_copy_have_chains(tell, home, tmp_path):
    story = tell("a")
    registry.store_client().delete_model_version("digits", "1")
    for path in (story.bundle, story.pushed, story.checkpoint):
        chain = query.lineage(str(path), home=home)
        assert chain.data_digests == [story.data_digest]
        assert chain.commits == [story.manifest["training"]["source"]["commit"]]
    # A copy of the served folder on a machine that has nothing else still tells its whole chain.
    elsewhere = tmp_path / "elsewhere" / "1"
    shutil.copytree(story.pushed, elsewhere)
    shutil.rmtree(home)
    chain = query.lineage(str(elsewhere), home=tmp_path / "new")
    assert chain.data_digests == [story.data_digest]
    assert chain.root.find("training")[0].facts["note"] == "not in this MLflow store"


def test_manifest_of_a_running_server_leads_to_its_version(told):
    story = told[0]
    chain = query.lineage_of_manifest(story.manifest, subject="localhost:8500 digits", home=told[0].home)
    assert (chain.subject, chain.root.id) == ("localhost:8500 digits", "digits/1")
    stranger = story.manifest | {"saved_model_digest": "0" * 64}
    chain = query.lineage_of_manifest(stranger, subject="x", home=told[0].home)
    assert (chain.root.kind, chain.data_digests) == ("saved_model", [story.data_digest])
    with pytest.raises(LineageError, match="x answered with no manifest of isthmus"):
        query.lineage_of_manifest({}, subject="x", home=told[0].home)


def test_an_answer_with_many_versions_has_a_line_for_each(told, monkeypatch):
    monkeypatch.setattr(query, "_MAX_FULL_CHAINS", 1)
    story = told[0]
    chain = query.lineage(story.data_digest, home=told[0].home)
    assert [child.children for child in chain.root.children] == [[], []]
    assert chain.commits == [story.manifest["training"]["source"]["commit"]]
    assert "champion since" in render.tree(chain)


def test_at_a_time_in_between(tell, home):
    tell("a")
    tell("b")
    between = datetime.now(UTC)
    registry.promote("digits")
    assert query.lineage("models:/digits@champion", home=home).root.id == "digits/2"
    then = query.lineage("models:/digits@champion", home=home, at=between)
    assert then.root.id == "digits/1"
    term = then.root.facts["champion"][0]
    assert term["until"] == registry.history("digits")[-1].when
    assert "champion from" in render.tree(then)
    with pytest.raises(LineageError, match="digits had no champion at 2020-01-01"):
        query.lineage("models:/digits@champion", home=home, at=datetime(2020, 1, 1, tzinfo=UTC))
    assert query.lineage("digits@champion", home=home, at=between.isoformat()).root.id == "digits/1"
    with pytest.raises(LineageError, match="'yesterday' is no time; write 2026-11-01T12:00"):
        query.lineage("digits@champion", home=home, at="yesterday")
    with pytest.raises(LineageError, match="--at asks what was champion then"):
        query.lineage("models:/digits/2", home=home, at=between)


def test_unknown_subjects_say_what_may_be_asked(told, tmp_path):
    with pytest.raises(LineageError, match="is nothing that lineage knows; give models:/NAME@ALIAS"):
        query.lineage("no such thing", home=told[0].home)
    with pytest.raises(LineageError, match="no registered model 'digit'; registered models: digits"):
        query.lineage("models:/digit@champion", home=told[0].home)
    with pytest.raises(LineageError, match="nothing registered carries abcdef0123"):
        query.lineage("abcdef0123", home=told[0].home)
    stranger = tmp_path / "model.onnx"
    stranger.write_bytes(b"?")
    with pytest.raises(LineageError, match=f"sha256 {sha256_file(stranger)}"):
        query.lineage(str(stranger), home=told[0].home)
    with pytest.raises(LineageError, match="is no bundle, checkpoint, pushed version or data folder"):
        query.lineage(str(tmp_path), home=told[0].home)


def test_a_time_without_a_zone_is_in_utc():
    assert query.parse_time("2026-11-01T12:00") == datetime(2026, 11, 1, 12, tzinfo=UTC)
    assert query.parse_time("2026-11-01T12:00+01:00") == datetime(2026, 11, 1, 11, tzinfo=UTC)
