"""Lineage, verification and promotion in a store that has grown: 1,000 versions and 10,000 runs.

python benchmarks/lineage.py [--home DIR]      (a store with a pushed digits model; default: one is made)

The rows are copies of real ones in MLflow's own SQLite file: what is measured is isthmus and MLflow reading them.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from measure import run, write_section

from isthmus.lineage import files, promotion, query, registry, tracking, verify

NAME = "digits"
RUN_TABLES = {"tags": "run_uuid", "params": "run_uuid", "latest_metrics": "run_uuid", "metrics": "run_uuid"}
ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="left as it is; its rows are copied")
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=10_000)
    arguments = parser.parse_args()
    logging.getLogger("isthmus").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        home = arguments.home
        if home is None:
            home = Path(folder) / "store"
            run(["make", "--silent", "train", "export", "pipeline", f"STORE={home}"])
        # Links of the store stay true: only the database is another one.
        uri = f"sqlite:///{Path(folder) / 'grown.db'}"
        shutil.copy(home / "mlflow.db", Path(folder) / "grown.db")
        rows = [measured(home, uri, versions=1, runs=3)]
        grow(Path(folder) / "grown.db", versions=arguments.versions, runs=arguments.runs)
        rows.append(measured(home, uri, versions=arguments.versions, runs=arguments.runs))
        verified = verification(home, uri)
        promoted = promotion_s(home, uri, version=arguments.versions)
    write_section("Lineage", table(rows, verified, promoted))


def grow(database: Path, *, versions: int, runs: int) -> None:
    """Copies the first version's rows and its training run's until there are so many."""
    with closing(sqlite3.connect(database)) as connection, connection:
        (template,) = connection.execute(
            "select run_id from model_versions where name = ? and version = 1", (NAME,)
        ).fetchone()
        connection.execute("create temp table fresh (id text primary key)")
        (there,) = connection.execute("select count(*) from runs").fetchone()
        connection.executemany(
            "insert into fresh values (?)", ((f"{number:032x}",) for number in range(runs - there))
        )
        for table, key in {"runs": "run_uuid", **RUN_TABLES}.items():
            _copy(connection, table, key=key, where=f"{key} = '{template}'", source="fresh", new="fresh.id")
        connection.execute("create temp table numbers (id integer primary key)")
        connection.executemany(
            "insert into numbers values (?)", ((number,) for number in range(2, versions + 1))
        )
        for table in ("model_versions", "model_version_tags"):
            where = f"name = '{NAME}' and version = 1"
            _copy(connection, table, key="version", where=where, source="numbers", new="numbers.id")


def _copy(connection: sqlite3.Connection, table: str, *, key: str, where: str, source: str, new: str) -> None:
    columns = [row[1] for row in connection.execute(f"pragma table_info({table})")]
    chosen = ", ".join(new if column == key else f"{table}.{column}" for column in columns)
    connection.execute(
        f"insert into {table} ({', '.join(columns)}) select {chosen} from {table}, {source} where {where}"
    )


def measured(home: Path, uri: str, *, versions: int, runs: int) -> dict[str, float]:
    """Median seconds of each question."""
    tracking.connect(home, uri)
    digest = registry.get(NAME, 1).tag("dataset_digest") or ""
    return {
        "versions": versions,
        "runs": runs,
        "champion": median_s(lambda: query.lineage(f"models:/{NAME}@champion", home=home, tracking_uri=uri)),
        "digest": median_s(lambda: query.lineage(digest, home=home, tracking_uri=uri), rounds=3),
    }


def median_s(question: Callable[[], object], *, rounds: int = ROUNDS) -> float:
    """Seconds of one call, the first left out: it imports."""
    question()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        question()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


@dataclass(frozen=True, kw_only=True)
class Verified:
    """Verification of one version against sha256 over the same files, medians of interleaved rounds."""

    size: int
    """Bytes."""
    seconds: float
    fixed: float
    """Of these, what is left when every file's hash is known: MLflow's answers, git, small files."""
    ratio: float
    """sha256's time ÷ the whole of verify's."""
    marginal: float
    """sha256's time ÷ what verify takes beyond `fixed`: the ratio that a large model nears."""


def verification(home: Path, uri: str) -> Verified:
    """Verifies the champion's chain, with and without hashing, and hashes the same files alone."""
    chain = query.lineage(f"models:/{NAME}@champion", home=home, tracking_uri=uri)
    known: dict[Path, str] = {}
    hash_file = files.sha256_file

    def recording(path: Path) -> str:
        known[Path(path)] = hash_file(path)
        return known[Path(path)]

    def timed(sha256: Callable[[Path], str]) -> float:
        for module in (files, verify):
            module.sha256_file = sha256
        started = time.perf_counter()
        verify.verify(chain)
        took = time.perf_counter() - started
        for module in (files, verify):
            module.sha256_file = hash_file
        return took

    timed(recording)
    rounds = []
    for _ in range(ROUNDS):
        whole, fixed = timed(hash_file), timed(lambda path: known[Path(path)])
        started = time.perf_counter()
        for path in known:
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")
        rounds.append((whole, fixed, time.perf_counter() - started))
    return Verified(
        size=sum(path.stat().st_size for path in known),
        seconds=statistics.median(whole for whole, _, _ in rounds),
        fixed=statistics.median(fixed for _, fixed, _ in rounds),
        ratio=statistics.median(plain / whole for whole, _, plain in rounds),
        marginal=statistics.median(plain / (whole - fixed) for whole, fixed, plain in rounds),
    )


def promotion_s(home: Path, uri: str, *, version: int) -> float:
    """Seconds to make the newest version champion: every gate, every hash, history and alias."""
    tracking.connect(home, uri)
    started = time.perf_counter()
    promotion.promote(NAME, version, why="benchmark")
    return time.perf_counter() - started


def table(rows: list[dict[str, float]], verified: Verified, promoted: float) -> str:
    lines = [
        "| versions | runs | lineage of the champion | versions of a data digest |",
        "|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['versions']:,.0f} | {row['runs']:,.0f} | {row['champion']:.2f} s | {row['digest']:.2f} s |"
        for row in rows
    ]
    return "\n".join(
        [
            "Medians after imports, SQLite. The digest's answer names every version that used the data.",
            "",
            *lines,
            "",
            f"Verify: {verified.size / 2**20:.0f} MiB in {verified.seconds:.2f} s, of which {verified.fixed:.2f} s go "
            f"to MLflow's answers and the like whatever the size: {verified.ratio:.2f} of sha256's speed over the same "
            f"files in all, {verified.marginal:.2f} beyond the fixed part. "
            f"Promotion of version {rows[-1]['versions']:,.0f}, gates and hashes included: {promoted:.1f} s.",
        ]
    )


if __name__ == "__main__":
    main()
