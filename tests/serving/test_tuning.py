"""`isthmus serve --tune`: the choice, and a run on a model with its result served."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isthmus.serving import tuning, warmup
from isthmus.serving.batching_parameters import read_parameters
from isthmus.serving.client import GrpcClient
from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import ServingError
from isthmus.serving.process import ServerProcess
from isthmus.serving.tuning import Measured, choose


def measured(size: int, rate: float, p99_ms: float, timeout_micros: int = 0) -> Measured:
    return Measured(
        max_batch_size=size,
        timeout_micros=timeout_micros,
        clients=2 * size,
        rows_per_second=rate,
        p50_ms=p99_ms / 2,
        p99_ms=p99_ms,
    )


SWEEP = [measured(1, 100, 10), measured(2, 150, 14), measured(4, 152, 25), measured(8, 300, 60)]


@pytest.mark.parametrize(("target_ms", "size"), [(12, 1), (20, 2), (30, 2), (60, 8)])
def test_choice(target_ms: float, size: int) -> None:
    assert choose(SWEEP, target_ms=target_ms).max_batch_size == size


def test_no_choice() -> None:
    with pytest.raises(
        ServingError, match=r"no setting keeps 99 % .* within 5 ms; the best is 10\.0 ms with .* 1:"
    ):
        choose(SWEEP, target_ms=5)


def test_refusals(tmp_path: Path) -> None:
    for config, text in (
        (ServingConfig(), "--tune measures one model: give --model_base_path"),
        (ServingConfig(model_base_path=tmp_path, tune_seconds=0), "must be above 0"),
        (ServingConfig(model_base_path=tmp_path / "no"), "cannot read the base path"),
        (ServingConfig(model_base_path=tmp_path), "no version under .* numbered folders"),
    ):
        with pytest.raises(ServingError, match=text):
            tuning.tune(config)


def test_tune_and_serve_the_result(models_root: Path, tmp_path: Path) -> None:
    base = tmp_path / "half"
    shutil.copytree(models_root / "half_plus_n" / "2", base / "2")
    command = [sys.executable, "-m", "isthmus.serving", "--tune", f"--model_base_path={base}"]
    command += ["--latency_target_ms=20000", "--tune_seconds=0.2", f"--tune_output={tmp_path / 'tuned'}"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)

    refused = run()
    assert refused.returncode == 1
    assert "has no warm-up request for serving_default" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "tuned").exists()

    (base / "2" / "assets.extra").mkdir()
    inputs = {"x": np.array([3.0], np.float32)}
    warmup.write(base / "2" / warmup.WARMUP_FILE, [inputs], [1, 2], name="half")
    tuned = run()
    assert tuned.returncode == 0, tuned.stderr
    _, heading, first, *_, chosen, _, _ = tuned.stdout.splitlines()
    assert heading.split() == ["max_batch_size", "wait", "µs", "clients", "rows/s", "p50", "ms", "p99", "ms"]
    assert first.split()[:2] == ["1", "0"]
    file = tmp_path / "tuned" / "batching.config"
    parameters = read_parameters(file, num_cpus=1)
    assert f"chosen: batches of at most {parameters.max_execution_batch_size}," in chosen
    assert parameters.allowed_batch_sizes[-1] == parameters.max_execution_batch_size

    shutil.copy(tmp_path / "tuned" / "tf_serving_warmup_requests", base / "2" / "assets.extra")
    flags = ["--enable_batching", f"--batching_parameters_file={file}"]
    with ServerProcess("half", base, flags=flags) as server, GrpcClient(port=server.grpc_port) as client:
        assert client.predict("half", inputs)["y"].tolist() == [3.5]
