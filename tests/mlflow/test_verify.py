"""Each link recomputed: a whole story holds, and every single change is found and named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from isthmus.lineage import query, registry, verify
from isthmus.lineage.chain import Chain


def _statuses(chain: Chain) -> dict[str, str]:
    return {result.link: result.status for result in verify.verify(chain)}


def test_every_link_of_an_untouched_story_holds(tell, home):
    tell("a")
    results = verify.verify(query.lineage("digits", home=home))
    unknown = [result for result in results if result.status != "holds"]
    # The made-up commit is in no repository; everything else is really there.
    assert [result.link for result in unknown] == ["training run → commit"]
    assert len(results) == 12
    assert verify.worst(results) == "unknown"


def _all_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_one_flipped_bit_in_any_file_of_bundle_pushed_checkpoint_or_data_is_found(tell, home):
    story = tell("a")
    chain = query.lineage("digits", home=home)
    looked_at = 0
    for folder in (story.bundle, story.pushed, story.checkpoint, story.data):
        for name in _all_files(folder):
            if name in ("checkpoint.json", "dataset.json"):
                continue
            path = folder / name
            content = path.read_bytes()
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            assert verify.worst(verify.verify(chain)) == "broken", path
            path.write_bytes(content)
            looked_at += 1
    # Bundle 6 (manifest, two copies, ONNX, graph, labels), pushed 4, weights 1, images 6.
    assert looked_at == 17
    assert verify.worst(verify.verify(chain)) == "unknown"


def test_changed_model_in_mlflow_is_found(tell, home):
    story = tell("a")
    chain = query.lineage("digits", home=home)
    for link, name in (
        ("SavedModel → MLflow model", "saved_model.pb"),
        ("ONNX → MLflow model", "model.onnx"),
    ):
        (path,) = (home / "mlartifacts").rglob(name)
        content = path.read_bytes()
        path.write_bytes(b"x" + content)
        assert _statuses(chain)[link] == "broken"
        path.write_bytes(content)
    assert story.version.model_id


def test_changed_tags_of_version_and_run_are_found(tell, home):
    story = tell("a")
    client = registry.store_client()
    client.set_model_version_tag("digits", "1", "isthmus.dataset_digest", "0" * 64)
    assert _statuses(query.lineage("digits/1", home=home))["version → manifest"] == "broken"
    client.set_tag(story.train_run, "isthmus.weights_sha256", "0" * 64)
    assert _statuses(query.lineage("digits/1", home=home))["weights → training run"] == "broken"


def test_what_is_gone_is_unknown_and_not_broken(tell, home):
    story = tell("a")
    for folder in (story.bundle, story.checkpoint, story.data, home / "mlartifacts"):
        shutil.rmtree(folder)
    statuses = _statuses(query.lineage("digits", home=home))
    assert statuses["version → served files"] == "holds"
    for link in ("version → bundle", "weights → checkpoint", "weights → data", "SavedModel → MLflow model"):
        assert statuses[link] == "unknown", link


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_changed_history_is_found(tell, home, change):
    tell("a")
    tell("b")
    client = registry.store_client()
    if change == "edit":
        text = client.get_model_version("digits.history", "2").tags["isthmus.entry"]
        client.set_model_version_tag("digits.history", "2", "isthmus.entry", text.replace("test", "else"))
    else:
        client.delete_model_version("digits.history", "2")
    results = verify.verify(query.lineage("digits/1", home=home))
    (found,) = [result for result in results if result.link == "registry → history"]
    assert found.status == "broken"
    assert "history entry 2 was" in found.detail


def test_a_checkpoint_alone_has_the_links_of_its_training(tell, home):
    story = tell("a")
    registry.store_client().delete_model_version("digits", "1")
    statuses = _statuses(query.lineage(str(story.checkpoint), home=home))
    assert statuses == {
        "weights → checkpoint": "holds",
        "weights → training run": "holds",
        "weights → data": "holds",
        "training run → commit": "unknown",
    }
