"""What garbage collection takes, and what it must never take."""

from __future__ import annotations

import shutil

import pytest

from isthmus.lineage import cleanup, query, registry, verify
from isthmus.lineage.config import RegistryConfig
from isthmus.lineage.files import point_latest


def test_aliases_and_the_last_champions_are_kept(tell, home):
    for content in "abcde":
        tell(content)
    for number in (2, 3):
        registry.promote("digits", number)
    config = RegistryConfig(keep_champions=2)
    removals = cleanup.plan("digits", home=home, config=config)
    assert [removal.version.version for removal in removals] == [1, 4]
    cleanup.carry_out(removals, home=home)
    assert [version.version for version in registry.list_versions("digits")] == [5, 3, 2]
    assert registry.rollback("digits").version.version == 2
    assert cleanup.plan("digits", home=home, config=config) == []
    assert len(registry.history("digits")) == 9


def test_everything_of_a_removed_version_goes_and_nothing_of_a_kept_one(tell, home):
    first = tell("a")
    second = tell("b")
    registry.promote("digits")
    (removal,) = cleanup.plan("digits", home=home, config=RegistryConfig(keep_champions=1))
    assert removal.folders == (first.pushed, first.bundle, first.checkpoint)
    assert len(removal.model_ids) == 3
    assert removal.num_bytes > 1000
    assert removal.to_dict()["version"] == 1
    cleanup.carry_out([removal], home=home)
    assert not any(folder.exists() for folder in (first.pushed, first.bundle, first.checkpoint))
    assert len(list((home / "mlartifacts").rglob("MLmodel"))) == 2
    results = verify.verify(query.lineage("digits", home=home))
    assert [result.link for result in results if result.status != "holds"] == ["training run → commit"]
    assert second.bundle.is_dir()


def test_latest_shared_and_foreign_folders_stay(tell, home, tmp_path):
    first, second = tell("a"), tell("b")
    registry.promote("digits")
    point_latest(home / "checkpoints" / "digits" / "latest", first.checkpoint)
    foreign = tmp_path / "elsewhere"
    shutil.copytree(first.bundle, foreign)
    client = registry.store_client()
    client.set_model_version_tag("digits", "1", "isthmus.bundle", str(foreign))
    client.set_model_version_tag("digits", "1", "isthmus.pushed_path", str(second.pushed))
    (removal,) = cleanup.plan("digits", home=home, config=RegistryConfig(keep_champions=1))
    assert removal.folders == ()
    cleanup.carry_out([removal], home=home)
    assert foreign.is_dir()
    assert second.pushed.is_dir()
    assert first.checkpoint.is_dir()


@pytest.mark.parametrize(("field", "value"), [("keep_champions", 0), ("max_metric_drop", -0.1)])
def test_a_senseless_recipe_is_refused(field, value):
    with pytest.raises(ValueError, match=f"registry.{field} is {value}; give"):
        RegistryConfig(**{field: value})
