"""Versions, aliases, promotion, rollback: every case against a real store."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from isthmus.export.config import GateConfig
from isthmus.lineage import history, parity_limits, promotion, registry
from isthmus.lineage.config import RegistryConfig
from isthmus.lineage.errors import LineageError, PromotionConflict, PromotionRefused


def test_first_version_of_a_name_is_champion_and_the_history_says_why(tell):
    version = tell("a").version
    assert (version.version, version.aliases) == (1, ("challenger", "champion"))
    assert [(entry.action, entry.alias, entry.to_version) for entry in registry.history("digits")] == [
        ("register", "challenger", 1),
        ("first", "champion", 1),
    ]
    first = registry.history("digits")[1]
    assert first.why == "there was no champion"
    assert first.verdicts["parity"] == "1 stages passed"


DIRTY = {"commit": "d" * 40, "dirty": True, "remote": None}


def test_first_version_from_a_dirty_work_tree_is_champion_as_promote_would_have_it(tell):
    assert tell("a", source=DIRTY).version.aliases == ("challenger", "champion")
    assert registry.history("digits")[1].verdicts["source"] == "uncommitted changes at export"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"overrides": [{"gate": "server_grpc", "who": "operator", "why": "hurry"}]}, "overrides: exported"),
        ({"parity": {"passed": False, "stages": []}}, "parity: no passing parity verdict"),
        ({"files": {}}, r"bundle: .* does not belong"),
        ({"recipe": {"registry": {"approval_required": True}}}, "approval: the recipe asks for approval"),
        ({"recipe": {"registry": {"allow_dirty": False}}, "source": DIRTY}, "source: uncommitted changes"),
    ],
    ids=["overrides", "parity", "hashes", "approval", "dirty"],
)
def test_first_version_that_fails_a_gate_stays_challenger_and_one_line_says_why(
    tell, caplog, changes, reason
):
    caplog.set_level(logging.INFO, logger="isthmus.lineage")
    assert tell("a", **changes).version.aliases == ("challenger",)
    assert registry.champion("digits") is None
    assert [entry.action for entry in registry.history("digits")] == ["register"]
    (line,) = [text for text in caplog.messages if "stays challenger" in text]
    assert re.search(reason, line)
    assert "`isthmus registry promote digits 1`" in line


def test_first_version_that_waited_for_approval_is_promoted(tell):
    tell("a", recipe={"registry": {"approval_required": True}})
    move = registry.promote("digits", approve_by="reviewer")
    assert (move.previous, move.version.aliases) == (None, ("challenger", "champion"))


def test_next_version_is_champion_where_the_first_was_refused(tell):
    tell("a", parity={"passed": False, "stages": []})
    assert tell("b").version.aliases == ("challenger", "champion")


def test_second_version_is_challenger_only(tell):
    tell("a")
    second = tell("b").version
    assert second.aliases == ("challenger",)
    assert registry.champion("digits").version == 1
    assert registry.challenger("digits").version == 2


def test_same_saved_model_is_registered_once(tell):
    story = tell("a")
    again = registry.register_version(
        name="digits",
        manifest=story.manifest,
        bundle=story.bundle,
        pushed_path=story.home / "serving/digits/9",
        served_version=9,
    )
    assert again.version == 1
    assert again.served_version == 9
    assert len(registry.list_versions("digits")) == 1
    assert len(registry.history("digits")) == 2


def test_two_registrations_at_once_of_one_saved_model_leave_one_version(tell):
    story = tell("a", name="other")
    _at_once(
        lambda: registry.register_version(name="digits", manifest=story.manifest, bundle=story.bundle),
        lambda: registry.register_version(name="digits", manifest=story.manifest, bundle=story.bundle),
    )
    assert len(registry.list_versions("digits")) == 1


def test_version_carries_every_hash_and_link(tell):
    story = tell("a")
    tags = story.version.tags
    assert tags["isthmus.weights_sha256"] == story.manifest["training"]["checkpoint_sha256"]
    assert tags["isthmus.onnx_sha256"] == story.manifest["export"]["onnx_sha256"]
    assert tags["isthmus.saved_model_digest"] == story.manifest["saved_model_digest"]
    assert tags["isthmus.dataset_digest"] == story.data_digest
    assert tags["isthmus.git_commit"] == story.manifest["training"]["source"]["commit"]
    assert tags["isthmus.train_run_id"] == story.train_run
    assert tags["isthmus.pipeline_run_id"] == story.version.run_id == story.pipeline_run
    assert tags["isthmus.mlmd.model_artifact_id"] == "7"
    assert story.version.served_version == 1
    assert story.version.metrics == {"accuracy": 0.98}
    assert story.version.model_id == story.manifest["export"]["mlflow"]["saved_model_id"]
    assert json.loads(json.dumps(story.version.to_dict()))["aliases"] == ["challenger", "champion"]


def test_promote_moves_champion_and_records_who_why_and_the_verdicts(tell):
    tell("a")
    tell("b")
    move = registry.promote("digits", by="operator", why="better", approve_by="reviewer")
    assert (move.previous, move.version.version, move.version.aliases) == (1, 2, ("challenger", "champion"))
    entry = registry.history("digits")[-1]
    assert (entry.action, entry.by, entry.approved_by, entry.why) == (
        "promote",
        "operator",
        "reviewer",
        "better",
    )
    assert "every file" in entry.verdicts["pushed version"]
    assert entry.verdicts["parity"] == "1 stages passed"


def test_rollback_pops_and_does_not_bounce(tell):
    for content in "abc":
        tell(content)
    registry.promote("digits", 2)
    registry.promote("digits", 3)
    assert registry.rollback("digits").version.version == 2
    assert registry.rollback("digits", why="worse").version.version == 1
    with pytest.raises(LineageError, match="cannot be rolled back; earlier champions: none"):
        registry.rollback("digits")


def test_rollback_to_a_named_champion_only(tell):
    for content in "abcd":
        tell(content)
    registry.promote("digits", 2)
    registry.promote("digits", 4)
    with pytest.raises(LineageError, match="cannot be rolled back to version 3; earlier champions: 1, 2"):
        registry.rollback("digits", to=3)
    assert registry.rollback("digits", to=1).previous == 4


def test_rollback_needs_no_bundle_but_an_intact_pushed_version(tell):
    first = tell("a")
    tell("b")
    registry.promote("digits")
    (first.bundle / "manifest.json").unlink()
    (first.pushed / "saved_model.pb").write_bytes(b"graph A")
    with pytest.raises(PromotionRefused, match=r"saved_model.pb was changed"):
        registry.rollback("digits")
    (first.pushed / "saved_model.pb").write_bytes(b"graph a")
    assert registry.rollback("digits").version.version == 1


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("pushed", "saved_model.pb"),
        ("pushed", "assets/manifest.json"),
        ("pushed", "assets.extra/manifest.json"),
        ("pushed", "assets/labels.txt"),
        ("bundle", "model.onnx"),
        ("bundle", "manifest.json"),
        ("bundle", "saved_model/assets/labels.txt"),
    ],
)
def test_one_flipped_bit_anywhere_stops_a_promotion(tell, folder, file):
    tell("a")
    path = getattr(tell("b"), folder) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(PromotionRefused, match=Path(file).name):
        registry.promote("digits")
    assert registry.champion("digits").version == 1


def test_a_file_too_many_stops_a_promotion(tell):
    tell("a")
    (tell("b").pushed / "variables").write_bytes(b"")
    with pytest.raises(PromotionRefused, match="variables does not belong"):
        registry.promote("digits")


def test_overrides_and_failed_parity_are_never_champion(tell):
    tell("a")
    tell("b", overrides=[{"gate": "parity", "by": "operator", "why": "hurry"}])
    with pytest.raises(PromotionRefused, match=r"overridden gates: .*operator") as refused:
        registry.promote("digits")
    assert [reason.split(":")[0] for reason in refused.value.reasons] == ["overrides"]
    tell(
        "c",
        parity={
            "passed": True,
            "gates": asdict(GateConfig()),
            "stages": [{"stage": "server", "error": 2e-3, "limit": 1e-3, "passed": True}],
        },
    )
    with pytest.raises(PromotionRefused, match="parity: failed at: server"):
        registry.promote("digits")
    tell("d", parity={"passed": True, "stages": []})
    with pytest.raises(PromotionRefused, match="no passing parity verdict"):
        registry.promote("digits")


@pytest.mark.parametrize(
    ("stage", "gates", "text"),
    [
        ("server_rest", {"logit_error": 1000.0}, "server_rest .* logit_error 1000.0, .* default 0.001"),
        ("preprocessing", {"differing_pixels": 5}, "preprocessing .* differing_pixels 5, .* default 0"),
        ("saved_model", {"top1_agreement": 0.5}, "saved_model .* top1_agreement 0.5, .* default 1.0"),
        ("saved_model", {"tie_margin": 9.0}, "saved_model .* tie_margin 9.0, .* default 0.001"),
    ],
)
def test_limits_looser_than_the_defaults_are_never_champion(tell, stage, gates, text):
    tell("a")
    asked = asdict(GateConfig(**gates))
    limit = asked["differing_pixels" if stage == "preprocessing" else "logit_error"]
    row = {"stage": stage, "error": 0.0, "limit": limit, "passed": True}
    tell("b", parity={"passed": True, "gates": asked, "stages": [row]})
    with pytest.raises(PromotionRefused, match=f"parity: {text}") as refused:
        registry.promote("digits")
    assert len(refused.value.reasons) == 1


def test_a_champion_is_held_to_the_defaults_of_the_export():
    assert asdict(GateConfig()) == parity_limits.STANDARD


def test_stricter_limits_than_the_defaults_are_fine(tell):
    tell("a")
    asked = asdict(GateConfig(logit_error=1e-5, tie_margin=0.0))
    row = {"stage": "saved_model", "error": 0.0, "limit": 1e-5, "passed": True}
    tell("b", parity={"passed": True, "gates": asked, "stages": [row]})
    assert registry.promote("digits").version.version == 2


def test_a_gate_that_cannot_run_has_failed(tell):
    tell("a")
    story = tell("b")
    (story.bundle / "manifest.json").unlink()
    with pytest.raises(PromotionRefused, match="is not there to be checked"):
        registry.promote("digits")


def test_recipe_can_ask_for_approval_a_clean_tree_and_no_drop(tell):
    tell("a", accuracy=0.98)
    tell("b", accuracy=0.97, source={"commit": "d" * 40, "dirty": True, "remote": None})
    strict = RegistryConfig(approval_required=True, allow_dirty=False, max_metric_drop=0.005)
    with pytest.raises(PromotionRefused) as refused:
        registry.promote("digits", config=strict)
    assert [reason.split(":")[0] for reason in refused.value.reasons] == ["source", "comparison", "approval"]
    assert "accuracy 0.9700 against the champion's 0.9800" in str(refused.value)
    assert registry.promote("digits").version.version == 2


def test_promotion_reads_its_rules_from_the_recipe_in_the_manifest(tell):
    tell("a")
    tell("b", recipe={"registry": {"approval_required": True, "some_later_key": 1}})
    with pytest.raises(PromotionRefused, match="give --approve-by NAME"):
        registry.promote("digits")
    move = registry.promote("digits", approve_by="reviewer")
    assert str(move).splitlines()[0] == "version 2 is the champion of digits now (it was version 1)"
    assert "approval: approved by reviewer" in str(move)


def test_promoting_the_champion_again_says_so(tell):
    tell("a")
    with pytest.raises(LineageError, match="version 1 of digits is the champion already"):
        registry.promote("digits")


def test_unknown_names_versions_and_aliases_list_what_there_is(tell):
    tell("a")
    with pytest.raises(LineageError, match="no registered model 'digit'; registered models: digits"):
        registry.get("digit", 1)
    with pytest.raises(LineageError, match="digits has no version 7; its versions: 1"):
        registry.get("digits", "7")
    with pytest.raises(LineageError, match="no alias 'prod'; its aliases: challenger = 1, champion = 1"):
        registry.get("digits", "prod")
    assert registry.champion("unknown") is None


def test_two_promotions_at_once_one_wins_the_other_is_told(tell):
    for content in "abc":
        tell(content)
    outcomes = _at_once(
        lambda: registry.promote("digits", 2, by="operator"),
        lambda: registry.promote("digits", 3, by="reviewer"),
    )
    moves = [outcome for outcome in outcomes if isinstance(outcome, promotion.Move)]
    conflicts = [outcome for outcome in outcomes if isinstance(outcome, PromotionConflict)]
    # Both may also have run one after the other: then both are right, and the history shows both.
    assert len(moves) + len(conflicts) == 2
    entries = registry.history("digits")
    assert history.faults(entries) == []
    assert registry.champion("digits").version == history.champion_moves(entries)[-1].to_version


def test_a_promotion_decided_on_an_old_state_loses(tell, monkeypatch):
    for content in "abc":
        tell(content)
    real_check = promotion.check

    def slow_check(candidate, **options):
        monkeypatch.setattr(promotion, "check", real_check)
        registry.promote("digits", 3, by="operator", why="quicker")
        return real_check(candidate, **options)

    monkeypatch.setattr(promotion, "check", slow_check)
    with pytest.raises(
        PromotionConflict, match="operator made version 3 the champion of digits at the same time"
    ):
        registry.promote("digits", 2, by="reviewer")
    assert registry.champion("digits").version == 3
    assert [entry.effective for entry in registry.history("digits")[-2:]] == [True, False]


def test_a_promotion_killed_before_its_alias_is_finished_by_the_next_command(tell, monkeypatch):
    tell("a")
    tell("b")
    with monkeypatch.context() as killed:
        killed.setattr(promotion, "settle_aliases", _killed_at_the_second_call())
        with pytest.raises(KeyboardInterrupt):
            registry.promote("digits")
    assert registry.get("digits", "champion").version == 1
    assert registry.champion("digits").version == 2
    assert registry.get("digits", "champion").version == 2


def test_an_alias_moved_behind_our_back_is_put_back_and_reported(tell, caplog):
    tell("a")
    tell("b")
    registry.store_client().set_registered_model_alias("digits", "champion", "2")
    assert registry.champion("digits").version == 1
    assert "alias champion of digits pointed at 2; the history says 1: moved" in caplog.text


def test_champion_at_any_time(tell):
    tell("a")
    tell("b")
    before = datetime.fromisoformat(registry.history("digits")[0].when) - timedelta(seconds=1)
    between = datetime.now(UTC)
    registry.promote("digits")
    after = datetime.now(UTC) + timedelta(seconds=1)
    assert [registry.champion_at("digits", when) for when in (before, between, after)] == [None, 1, 2]


def test_servers_that_cannot_be_told_are_named_and_the_move_stands(tell):
    tell("a")
    tell("b")

    def mirror(wanted):
        assert (wanted.name, wanted.labels) == ("digits", {"stable": 2})
        return {"10.0.0.1:8500": "UNAVAILABLE: refused", "10.0.0.2:8500": None}

    move = registry.promote("digits", mirror=mirror)
    assert move.version.version == 2
    (notice,) = move.notices
    assert notice.startswith("10.0.0.1:8500 was not told that digits has stable = 2 (UNAVAILABLE: refused)")
    assert notice.endswith("`isthmus registry sync digits` tells it")


def test_diff_and_find(tell):
    first, second = tell("a"), tell("b", accuracy=0.5)
    difference = registry.diff("digits", 1, "challenger")
    assert difference["metric.accuracy"] == ("0.98", "0.5")
    assert "dataset_digest" not in difference
    assert [version.version for version in registry.find(dataset_digest=first.data_digest)] == [1, 2]
    assert registry.find("digits", onnx_sha256=second.manifest["export"]["onnx_sha256"])[0].version == 2
    assert registry.list_models() == ["digits"]


def test_names_that_cannot_be_asked_for_are_refused(tell):
    story = tell("a")
    for name in ("a/b", "models:x", "digits.history"):
        with pytest.raises(LineageError, match="cannot name a model"):
            registry.register_version(name=name, manifest=story.manifest, bundle=story.bundle)


def _at_once(*calls: Callable[[], object]) -> list[object]:
    """Run calls in threads that start together; an exception is an outcome too."""
    barrier = threading.Barrier(len(calls))
    outcomes: list[object] = [None] * len(calls)

    def run(index: int) -> None:
        barrier.wait()
        try:
            outcomes[index] = calls[index]()
        except LineageError as error:
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def _killed_at_the_second_call() -> Callable[..., list[str]]:
    """`settle_aliases` as it is before the decision, and a kill where the alias would move."""
    calls = iter([[]])

    def settle(*_: object) -> list[str]:
        for lines in calls:
            return lines
        raise KeyboardInterrupt

    return settle
