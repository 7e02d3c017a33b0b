"""Who is told of a move, what is remembered, and that a difference never goes unsaid."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from isthmus.cli.main import main
from isthmus.lineage import labels, registry
from isthmus.lineage.labels import Targets


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


def test_wanted_labels_are_served_version_numbers(tell):
    first = tell("a")
    base = str(first.pushed.parent)
    assert labels.wanted("digits") == labels.Wanted(name="digits", labels={"stable": 1}, base_path=base)
    tell("b")
    assert labels.wanted("digits").labels == {"stable": 1, "canary": 2}
    assert str(labels.wanted("digits")) == "stable = 1, canary = 2"
    registry.promote("digits")
    assert labels.wanted("digits").labels == {"stable": 2}


def test_targets_are_remembered_and_what_each_was_told(tell):
    tell("a")
    assert not labels.remembered("digits")
    assert labels.behind("digits") == []
    targets = Targets(servers=("one:8500", "two:8500"), only_model=True)
    labels.remember("digits", targets)
    assert labels.remembered("digits") == targets
    never = "was never told, the registry says stable = 1; run `isthmus registry sync digits`"
    assert labels.behind("digits") == [f"one:8500 {never}", f"two:8500 {never}"]
    lines = labels.tell("digits", lambda _: {"one:8500": None, "two:8500": "refused"})
    assert lines == [
        "two:8500 was not told that digits has stable = 1 (refused); it was never told. "
        "`isthmus registry sync digits` tells it"
    ]
    assert labels.last_told("digits") == {"one:8500": {"stable": 1}}
    tell("b")
    registry.promote("digits")
    assert labels.behind("digits")[0].startswith(
        "one:8500 was last told stable = 1, the registry says stable = 2"
    )
    labels.remember("digits", Targets(servers=("two:8500",)))
    assert labels.last_told("digits") == {}


def test_all_are_told_anew_where_the_registry_moved_meanwhile(tell):
    tell("a")
    tell("b")
    asked = []

    def slow(wanted: labels.Wanted) -> dict[str, str | None]:
        asked.append(dict(wanted.labels))
        if len(asked) == 1:
            registry.promote("digits")
        return {"one:8500": None}

    assert labels.tell("digits", slow) == []
    assert asked == [{"stable": 1, "canary": 2}, {"stable": 2}]
    assert labels.last_told("digits") == {"one:8500": {"stable": 2}}


MODELS_CONFIG = """
model_config_list {
  config { name: "other" base_path: "/models/other" model_platform: "tensorflow"
           model_version_policy { latest { num_versions: 2 } } version_labels { key: "beta" value: 7 } }
}
"""


def run(home: Path, *arguments: str) -> int:
    return main(["registry", *arguments, "--home", str(home)])


def test_commands_keep_the_rest_of_models_config_and_say_who_was_not_reached(tell, home, capsys):
    first = tell("a")
    tell("b")
    config = home / "models.config"
    config.write_text(MODELS_CONFIG)
    server = f"127.0.0.1:{closed_port()}"
    code = run(
        home, "promote", "digits", "--server", server, "--models-config", str(config), "--why", "better"
    )
    told = capsys.readouterr()
    assert code == 5
    assert registry.champion("digits").version == 2
    assert "version 2 is the champion of digits now" in told.out
    (line,) = [line for line in told.out.splitlines() if line.startswith(server)]
    assert "was not told that digits has stable = 2 (UNAVAILABLE" in line
    assert line.endswith("it was never told. `isthmus registry sync digits` tells it")
    text = config.read_text()
    for kept in ('"other"', "num_versions: 2", '"beta"'):
        assert kept in text
    assert f'base_path: "{first.pushed.parent}"' in text
    # The difference is said until it is mended.
    assert run(home, "list", "digits") == 0
    assert f"attention: {server} was never told, the registry says stable = 2" in capsys.readouterr().err
    assert run(home, "sync", "digits") == 5
    capsys.readouterr()
    assert run(home, "sync", "digits", "--models-config", str(config)) == 0
    assert capsys.readouterr().out.strip() == "digits has stable = 2 everywhere"
    assert run(home, "rollback", "digits") == 0
    assert "value: 1" in config.read_text()
    capsys.readouterr()
    assert run(home, "history", "digits", "--json") == 0
    seen = capsys.readouterr()
    assert seen.err == ""
    assert [entry["action"] for entry in json.loads(seen.out)][-1] == "rollback"


def test_an_interrupted_promotion_is_finished_by_saying_it_again(tell, home, capsys):
    tell("a")
    tell("b")
    config = home / "models.config"
    labels.remember("digits", Targets(models_config=str(config)))
    # As if killed between the alias and the servers.
    registry.promote("digits")
    assert run(home, "promote", "digits") == 0
    assert "version 2 is the champion of digits already; the servers follow now" in capsys.readouterr().out
    assert "value: 2" in config.read_text()


def test_the_recipe_names_the_servers(tell, home):
    tell("a")
    config = home / "from_recipe.config"
    tell("b", recipe={"registry": {"models_config": str(config)}})
    assert run(home, "promote", "digits") == 0
    assert "stable" in config.read_text()
    assert labels.remembered("digits") == Targets(models_config=str(config))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sync", "digits"], "nobody to tell about digits: give --server HOST:PORT"),
        (["sync", "digits", "--server", "host:8500"], "give --models-config, .* or --only-model"),
        (["sync", "digits", "--only-model"], "--only-model and --base-path say more about --server"),
        (["sync", "digit"], "no registered model 'digit'; registered models: digits"),
    ],
)
def test_wrong_usage_is_one_line(tell, home, capsys, arguments, says):
    tell("a")
    assert run(home, *arguments) > 0
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: .*{says}.*\n", error), error


def test_a_models_config_that_is_none_is_left_alone(tell, home, capsys):
    tell("a")
    config = home / "models.config"
    config.write_text("no config {")
    assert run(home, "sync", "digits", "--models-config", str(config)) == 5
    assert "cannot read" in capsys.readouterr().out
    assert config.read_text() == "no config {"
