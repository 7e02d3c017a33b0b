"""A store that an older MLflow 3 left behind: said in one line, upgraded by MLflow's own command, read as before."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import alembic.command
import sqlalchemy
from mlflow.store.db.utils import _get_alembic_config

from isthmus.lineage import history, query, tracking

OLDER = "-6"
"""Alembic's steps back from the schema of the installed MLflow: releases of some months ago."""


def test_an_older_store_is_upgraded_and_read(tell, migrated_store: Path, tmp_path: Path) -> None:
    story = tell("a")
    store = story.home / "mlflow.db"
    uri = f"sqlite:///{store}"
    config = _get_alembic_config(uri)
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, OLDER)
    engine.dispose()
    with closing(sqlite3.connect(store)) as connection:
        (older,) = connection.execute("select version_num from alembic_version").fetchone()
    with closing(sqlite3.connect(migrated_store)) as connection:
        (newest,) = connection.execute("select version_num from alembic_version").fetchone()
    assert older != newest
    home = tmp_path / "again"
    home.mkdir()
    store.rename(home / "mlflow.db")
    client = tracking.connect(home)
    assert [entry.to_version for entry in history.read(client, "digits")] == [1, 1]
    assert client.get_run(story.train_run).info.status == "FINISHED"
    assert query is not None
