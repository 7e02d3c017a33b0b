"""What importing costs: the client, the flags and the process wrapper run without tensorflow."""

import subprocess
import sys

import pytest


def modules_after(code: str) -> set[str]:
    """Names of the top-level modules that a fresh interpreter holds after running code."""
    listing = "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    run = subprocess.run(
        [sys.executable, "-c", code + listing], check=True, capture_output=True, text=True, timeout=60
    )
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "module", ["config", "errors", "flags", "process", "server", "client", "wire_messages"]
)
def test_no_tensorflow(module: str) -> None:
    assert "tensorflow" not in modules_after(f"import isthmus.serving.{module}")


def test_configuration_is_cheap() -> None:
    assert not {"numpy", "grpc", "uvicorn", "pydantic"} & modules_after("import isthmus.serving.config")


def test_messages_without_tensorflow() -> None:
    code = (
        "from isthmus.serving.wire_messages import message_class\n"
        "made = message_class('tensorflow_serving.apis.predict_pb2', 'PredictRequest')()\n"
        "made.model_spec.name = 'm'; made.inputs['x'].float_val.append(1.0)\n"
        "assert type(made).FromString(made.SerializeToString()) == made"
    )
    assert "tensorflow" not in modules_after(code)


def test_the_server_runs_without_keras() -> None:
    code = "from isthmus.serving.tensorflow_import import import_tensorflow; import_tensorflow()"
    loaded = modules_after(code)
    assert "tensorflow" in loaded
    assert not {"keras", "sklearn", "torch"} & loaded
