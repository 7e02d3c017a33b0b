"""The verdict on a SavedModel, in a fresh process with TensorFlow's default settings.

    python -m isthmus.export.tf_half.verify <job folder>

What is measured is what will run: the SavedModel reloaded from disk, by both loaders, grappler and oneDNN on;
then the same model in a running server, over both wires. A stage that raises has failed; the rest still run.

request.json: {"name", "saved_model", "reference", "labels", "head", "batch_sizes", "gates", "server_log"},
and optionally "stages", those to measure (no server is started where none needs it), and for a model in reduced
precision "evaluation" (a file of images) and "reduced" (ReducedGateConfig).
result.json: {"stages": [StageResult, …], "operators": how often each occurs in the optimised graph of `tensors`
(only where "stages" is given)}.
"""

from __future__ import annotations

import concurrent.futures
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.export.config import GateConfig, ReducedGateConfig, Stage
from isthmus.export.errors import ExportError
from isthmus.export.jobs import append_progress, serve_job
from isthmus.export.parity import Measurement, StageResult, failed_stage, judge_logits, judge_pixels
from isthmus.export.reduced import Evaluation, in_chunks, judge_reduced
from isthmus.export.reference import Reference, in_batches
from isthmus.export.tf_half.callers import (
    BytesQuestions,
    Caller,
    as_strings,
    bytes_measurement,
    eager_caller,
    session_caller,
    tensors,
)

if TYPE_CHECKING:
    from isthmus.serving.process import ServerProcess

log = logging.getLogger(__name__)

_SERVER_START_S = 300.0
_CALL_S = 300.0
# A float of an image costs about ten characters of JSON: 2^20 of them are a body of 10 MB, a second to parse.
_REST_FLOATS = 2**20
_NAMED_IMAGES = 5
_SIGNATURES_OF_BYTES = ("serving_default", "examples", "classify")


class Verification:
    """All stages of one SavedModel; each method measures one."""

    def __init__(
        self,
        *,
        saved_model: Path,
        loaded: Any,
        session: Caller,
        reference: Reference,
        labels: Sequence[str],
        head: str,
        batch_sizes: Sequence[int],
        gates: GateConfig,
    ) -> None:
        """`loaded` is what `tf.saved_model.load` gave, `session` the v1 loader; the rest: the request."""
        self.path, self.loaded, self.session = saved_model, loaded, session
        self.reference, self.labels, self.head = reference, labels, head
        self.gates = gates
        self.batch_sizes, self.largest = tuple(batch_sizes), max(batch_sizes)

    def saved_model(self) -> StageResult:
        """`tensors` through both loaders at every batch size."""
        loaders = (("tf.saved_model.load", eager_caller(self.loaded)), ("v1 session", self.session))
        measurements = [
            Measurement(what=f"{what}, batch {size}", candidate=self._tensors(call, size))
            for what, call in loaders
            for size in self.batch_sizes
        ]
        return self._judge("saved_model", measurements)

    def preprocessing(self) -> StageResult:
        """The pixels that the saved graph makes of encoded images: one by one, and in one mixed batch."""
        import tensorflow as tf

        def pixels(batch: Sequence[bytes]) -> np.ndarray:
            return np.asarray(self.loaded.pixels(tf.constant(list(batch), tf.string)))

        encoded = self.reference.encoded
        measurements = {"one batch": pixels(encoded), "one by one": in_batches(pixels, encoded, 1)}
        return judge_pixels(self.reference.pixels, measurements, gates=self.gates, paths=self.reference.paths)

    def end_to_end(self) -> StageResult:
        """From encoded bytes to the answer, through each signature that takes them, in both loaders."""
        self._check_manifest(self.session)
        measurements = self._bytes_measurements(
            "tf.saved_model.load", eager_caller(self.loaded), 1, _SIGNATURES_OF_BYTES
        )
        measurements += self._bytes_measurements(
            "v1 session", self.session, self.largest, _SIGNATURES_OF_BYTES
        )
        return self._judge("end_to_end", measurements)

    def server_grpc(self, server: ServerProcess) -> StageResult:
        """A running server, asked over gRPC: `tensors` at every batch size, and from encoded bytes."""
        from isthmus.serving.client import GrpcClient

        with GrpcClient(host=server.host, port=server.grpc_port, timeout_s=_CALL_S) as client:

            def call(signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
                return client.predict(server.model_name, inputs, signature=signature)

            measurements = [
                Measurement(what=f"tensors, batch {size}", candidate=self._tensors(call, size))
                for size in self.batch_sizes
            ]
            measurements += self._bytes_measurements(
                "gRPC", call, self.largest, ("serving_default", "examples")
            )
        return self._judge("server_grpc", measurements)

    def server_rest(self, server: ServerProcess) -> StageResult:
        """The same over REST; of large images only some travel through `tensors` as JSON."""
        from isthmus.serving.client import RestClient

        with RestClient(host=server.host, port=server.rest_port, timeout_s=_CALL_S) as client:

            def call(signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
                return client.predict(server.model_name, inputs, signature=signature)

            images = self.reference.images
            count = int(np.clip(_REST_FLOATS // images[0].size, 2, len(images)))
            measurements = [
                Measurement(
                    what="tensors, batch 1",
                    candidate=in_batches(lambda batch: tensors(call, batch), images[:count], 1),
                    rows=range(count),
                )
            ]
            measurements += self._bytes_measurements("REST", call, 1, ("serving_default",))
            measurements += self._bytes_measurements(
                "REST", call, self.largest, ("serving_default", "examples")
            )
        return self._judge("server_rest", measurements)

    def unreadable(self) -> str | None:
        """The reference images that the served graph refuses although Pillow reads them, in a line; None: none.

        A request names them by their place in a batch, from which nobody finds the file.
        """
        import tensorflow as tf

        refused = []
        for path, encoded in zip(self.reference.paths, self.reference.encoded, strict=True):
            try:
                self.loaded.pixels(tf.constant([encoded], tf.string))
            except tf.errors.OpError:
                refused.append(path)
        if not refused:
            return None
        more = f" and {len(refused) - _NAMED_IMAGES} more" if len(refused) > _NAMED_IMAGES else ""
        return (
            f"the served graph cannot read {len(refused)} of the {len(self.reference.paths)} reference images, which "
            f"Pillow reads: {', '.join(refused[:_NAMED_IMAGES])}{more}; save them again or take them out "
            "(docs/preprocessing.md says what it reads)"
        )

    def precision(self, evaluation: Evaluation, limits: ReducedGateConfig) -> StageResult:
        """Metric and answers on many images, through `tensors` as TensorFlow Serving runs it."""
        answers = np.concatenate(
            [tensors(self.session, evaluation.images(rows)) for rows in in_chunks(evaluation, self.largest)]
        )
        what = f"v1 session, batch {self.largest}, split {evaluation.split!r}"
        return judge_reduced("precision", evaluation, {what: answers}, limits=limits, head=self.head)

    def _tensors(self, call: Caller, batch_size: int) -> np.ndarray:
        return in_batches(lambda batch: tensors(call, batch), self.reference.images, batch_size)

    def _bytes_measurements(
        self, what: str, call: Caller, batch_size: int, signatures: Sequence[str]
    ) -> list[Measurement]:
        measurements = []
        for signature in signatures:
            questions = BytesQuestions(call, labels=self.labels, head=self.head)
            candidate = in_batches(getattr(questions, signature), self.reference.encoded, batch_size)
            name = f"{signature}, {what}, batch {batch_size}"
            if signature == "examples":
                # It answers with the logits themselves.
                measurements.append(
                    Measurement(what=name, candidate=candidate, inconsistent=questions.inconsistent)
                )
            else:
                measurements.append(
                    bytes_measurement(name, questions, candidate, self.reference.logits, head=self.head)
                )
        return measurements

    def _check_manifest(self, call: Caller) -> None:
        answer = call("manifest", {"inputs": as_strings([b""])})["manifest"][0]
        written = (self.path / "assets" / "manifest.json").read_bytes().rstrip(b"\n")
        if answer != written:
            raise ExportError("the signature `manifest` does not answer with assets/manifest.json")

    def _judge(self, stage: Stage, measurements: list[Measurement]) -> StageResult:
        return judge_logits(
            stage,
            self.reference.logits,
            measurements,
            gates=self.gates,
            head=self.head,
            paths=self.reference.paths,
        )


@contextmanager
def opened(
    saved_model: Path,
    *,
    reference: Reference,
    labels: Sequence[str],
    head: str,
    batch_sizes: Sequence[int],
    gates: GateConfig,
) -> Iterator[Verification]:
    """Load a SavedModel both ways, ready to be measured.

    Raises:
        ExportError: One of the loaders refuses it.
    """
    import tensorflow as tf

    with ExitStack() as stack:
        try:
            loaded = tf.saved_model.load(str(saved_model))
            session = stack.enter_context(session_caller(saved_model))
        except Exception as error:
            raise ExportError(f"{saved_model} does not load: {_text(error)}") from error
        yield Verification(
            saved_model=saved_model,
            loaded=loaded,
            session=session,
            reference=reference,
            labels=labels,
            head=head,
            batch_sizes=batch_sizes,
            gates=gates,
        )


@contextmanager
def server_ahead(
    name: str, saved_model: Path, *, folder: Path, log_path: Path
) -> Iterator[Callable[[], ServerProcess]]:
    """Start a server of the model; the value waits until it is available. Stopped at the end of the block.

    The model is served through a link in a folder of its own: a version's name is a number.
    """
    from isthmus.serving.process import ServerProcess

    base_path = folder / "served"
    base_path.mkdir()
    (base_path / "1").symlink_to(saved_model.absolute(), target_is_directory=True)
    server = ServerProcess(name, base_path, start_timeout_s=_SERVER_START_S, log_path=log_path)
    with concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-start") as pool:
        starting = pool.submit(server.__enter__)
        try:
            yield starting.result
        finally:
            concurrent.futures.wait([starting])
            if starting.exception() is None:
                server.__exit__(None, None, None)


def prepare() -> None:
    """Import TensorFlow before the request is there."""
    import tensorflow as tf

    assert tf


def run(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Measure the stages of one SavedModel."""
    saved_model, wanted = Path(request["saved_model"]), request.get("stages")
    gates = GateConfig(**request["gates"])
    with ExitStack() as stack:
        running_server: Callable[[], ServerProcess] = _no_server
        if wanted is None or set(wanted) & {"server_grpc", "server_rest"}:
            # The server imports TensorFlow in a process of its own while this one measures.
            log_path = Path(request["server_log"])
            ahead = server_ahead(request["name"], saved_model, folder=folder, log_path=log_path)
            running_server = stack.enter_context(ahead)
        verification = stack.enter_context(
            opened(
                saved_model,
                reference=Reference.load(Path(request["reference"])),
                labels=request["labels"],
                head=request["head"],
                batch_sizes=request["batch_sizes"],
                gates=gates,
            )
        )
        measures: dict[Stage, Callable[[], StageResult]] = {
            "saved_model": verification.saved_model,
            "preprocessing": verification.preprocessing,
            "end_to_end": verification.end_to_end,
            "server_grpc": lambda: verification.server_grpc(running_server()),
            "server_rest": lambda: verification.server_rest(running_server()),
        }
        if "evaluation" in request:
            evaluation = Evaluation.load(Path(request["evaluation"]))
            limits = ReducedGateConfig(**request["reduced"])
            measures["precision"] = lambda: verification.precision(evaluation, limits)
        stages = []
        for stage, measure in measures.items():
            if wanted is None or stage in wanted:
                reads_bytes = stage not in ("saved_model", "precision")
                explain = verification.unreadable if reads_bytes else None
                stages.append(_guarded(stage, measure, gates, explain=explain).as_dict())
                append_progress(folder, stages[-1])
        result: dict[str, Any] = {"stages": stages}
        if wanted is not None:
            result["operators"] = _operators(saved_model, verification.reference)
        return result


def _no_server() -> ServerProcess:
    raise AssertionError("no stage that was asked for needs a server")


def _operators(saved_model: Path, reference: Reference) -> dict[str, int]:
    """Operators of the graph that runs, after TensorFlow's own optimisers."""
    from isthmus.export.tf_half.saving import optimized_ops

    return dict(optimized_ops(saved_model, inputs={"images": reference.images[:1]}))


def _guarded(
    stage: Stage,
    measure: Callable[[], StageResult],
    gates: GateConfig,
    *,
    explain: Callable[[], str | None] | None = None,
) -> StageResult:
    """The stage's result; where it raises, a failed one, with what `explain` finds or else the exception."""
    try:
        return measure()
    except Exception as error:  # a gate that could not run has failed, whatever the reason
        log.exception("%s could not be measured", stage)
        reason = (explain() if explain else None) or _text(error)
        return failed_stage(stage, f"could not be measured: {reason}", gates=gates)


def _text(error: Exception) -> str:
    """One line: the first, and the last where the text quotes another process's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    quoted = f" … {lines[-1]}" if "Traceback" in lines[0] else ""
    return f"{type(error).__name__}: {lines[0]}{quoted}".removesuffix(": ")


if __name__ == "__main__":
    sys.exit(serve_job(sys.argv[1:], run, prepare=prepare))
