"""A store that an older MLflow 3 left behind is read as before: MLflow brings SQLite to its own schema."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from isthmus.lineage import history, query, tracking

OLDER = "-6"
"""Alembic's steps back from the schema of the installed MLflow: releases of some months ago."""


DOWNGRADE = """
import sys
import alembic.command, sqlalchemy
from mlflow.store.db.utils import _get_alembic_config
config = _get_alembic_config(sys.argv[1])
with sqlalchemy.create_engine(sys.argv[1]).begin() as connection:
    config.attributes["connection"] = connection
    alembic.command.downgrade(config, sys.argv[2])
"""


def test_an_older_store_is_upgraded_and_read(tell, migrated_store: Path, tmp_path: Path) -> None:
    story = tell("a")
    store = story.home / "mlflow.db"
    uri = f"sqlite:///{store}"
    # In a process of its own: Alembic's configuration turns every logger of this one off.
    subprocess.run([sys.executable, "-c", DOWNGRADE, uri, OLDER], check=True, capture_output=True)
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
    assert query.lineage("models:/digits@champion", home=home).records
