"""Version policies, label rules and the order of loads and unloads."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.serving.errors import RequestError
from isthmus.serving.versions import (
    Action,
    ModelSettings,
    Snapshot,
    State,
    VersionPolicy,
    aspired_versions,
    assigned_labels,
    next_action,
    parse_version,
)

FOLDERS = {1: "1", 2: "0002", 10: "10"}


@pytest.mark.parametrize(
    ("name", "version"),
    [("1", 1), ("00000123", 123), ("0", 0), (str(2**63 - 1), 2**63 - 1), (str(2**63), None)]
    + [(name, None) for name in ("", "-1", "+1", "1.0", "v1", "1 ", "tmp-2", "٣", ".1")],
)
def test_parse_version(name: str, version: int | None) -> None:
    assert parse_version(name) == version


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        (VersionPolicy(), [10]),
        (VersionPolicy(num_versions=2), [2, 10]),
        (VersionPolicy(num_versions=0), [10]),
        (VersionPolicy(num_versions=9), [1, 2, 10]),
        (VersionPolicy(kind="all"), [1, 2, 10]),
        (VersionPolicy(kind="specific", versions=frozenset({1, 7})), [1]),
    ],
)
def test_aspired_versions(policy: VersionPolicy, versions: list[int]) -> None:
    assert list(aspired_versions(FOLDERS, policy)) == versions


@pytest.mark.parametrize(
    ("snapshots", "action"),
    [
        ([], None),
        ([Snapshot(1, State.START, True), Snapshot(2, State.START, True)], Action("load", 2)),
        # The old one goes on serving while the new one loads, or when it failed.
        ([Snapshot(1, State.AVAILABLE, False), Snapshot(2, State.START, True)], Action("load", 2)),
        ([Snapshot(1, State.AVAILABLE, False), Snapshot(2, State.LOADING, True)], None),
        ([Snapshot(1, State.AVAILABLE, False), Snapshot(2, State.END, True)], None),
        ([Snapshot(1, State.AVAILABLE, False), Snapshot(2, State.AVAILABLE, True)], Action("unload", 1)),
        # Nothing is wanted any more.
        ([Snapshot(1, State.AVAILABLE, False)], Action("unload", 1)),
        ([Snapshot(1, State.UNLOADING, False)], None),
    ],
)
def test_next_action(snapshots: list[Snapshot], action: Action | None) -> None:
    assert next_action(snapshots) == action


SNAPSHOTS = st.lists(
    st.builds(Snapshot, st.integers(1, 6), st.sampled_from(State), st.booleans()),
    unique_by=lambda s: s.version,
)


@given(SNAPSHOTS)
def test_the_last_available_version_is_kept_while_one_is_wanted(snapshots: list[Snapshot]) -> None:
    action = next_action(snapshots)
    if action is not None and action.kind == "unload":
        wanted = [s for s in snapshots if s.is_aspired]
        assert not wanted or any(s.state is State.AVAILABLE for s in wanted)


def model(**labels: int) -> list[ModelSettings]:
    return [ModelSettings(name="m", base_path=Path("/m"), labels=labels)]


def test_labels_name_available_versions() -> None:
    assert assigned_labels(model(stable=1), {"m": (1,)}, {}, allow_unavailable=False) == {"m": {"stable": 1}}
    with pytest.raises(RequestError, match="Request to assign label to version 2 of model m, which is not"):
        assigned_labels(model(stable=2), {"m": (1,)}, {}, allow_unavailable=False)


def test_with_the_flag_a_new_label_may_name_any_version_but_an_old_one_does_not_move_there() -> None:
    assert assigned_labels(model(canary=2), {}, {}, allow_unavailable=True) == {"m": {"canary": 2}}
    with pytest.raises(RequestError, match="Request to assign label to version 2 of model m"):
        assigned_labels(model(canary=2), {"m": (1,)}, {"m": {"canary": 1}}, allow_unavailable=True)
