"""The server's configuration: one field per flag of tensorflow_model_server, under the flag's own name.

The command line (`flags.parse`) becomes this object; nothing else configures the server. There is no recipe
section and no `isthmus serve --config`: a server is started with the flags that the original takes, so that a
line that works here works there (`make serve` writes it for a recipe). Fields that tensorflow_model_server does
not have are marked "(not in tensorflow_model_server)".
"""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ServingConfig"]


@dataclass(kw_only=True)
class ServingConfig:
    """Everything the embedded server can be told."""

    host: str = "127.0.0.1"
    """Address to listen on: loopback unless told otherwise; 0.0.0.0 for all (not in
    tensorflow_model_server)."""

    port: int = 8500
    """TCP port of the gRPC API. 0: any free port (tensorflow_model_server: disabled)."""

    rest_api_port: int | None = None
    """TCP port of the REST API. 0: any free port (tensorflow_model_server: disabled). Not given: 8501, and no REST API
    where that is taken (tensorflow_model_server: disabled)."""

    rest_api_num_threads: int = 0
    """Threads that process REST requests. 0: four per CPU, at least 32 (a request in a batching queue holds
    one)."""

    rest_api_timeout_in_ms: int = 30000
    """Time limit of one REST request in ms; past it the answer is 504."""

    rest_api_enable_cors_support: bool = False
    """Answer browsers' cross-origin requests."""

    model_name: str = "default"
    """Name of the one model, unless model_config_file is given."""

    model_base_path: Path | None = None
    """Folder of the one model, holding a folder per version (1/, 2/, ...), unless model_config_file is
    given."""

    model_config_file: Path | None = None
    """A ModelServerConfig in text format: several models, version policies, labels. Overrides model_name and
    model_base_path."""

    model_config_file_poll_wait_seconds: float = 0.0
    """Seconds between two reads of model_config_file. 0: read once at the start."""

    allow_version_labels_for_unavailable_models: bool = False
    """Let a new label point at a version that is not available yet."""

    file_system_poll_wait_seconds: float = 1.0
    """Seconds between two looks at the base paths for new versions. 0: look once at the start. Negative:
    never look."""

    enable_batching: bool = False
    """Gather requests into batches, by TensorFlow's batch scheduler."""

    batching_parameters_file: Path | None = None
    """BatchingParameters in text format. Needs enable_batching."""

    enable_per_model_batching_parameters: bool = False
    """Prefer the batching_params.pbtxt in a version's folder to batching_parameters_file."""

    max_num_load_retries: int = 5
    """How often a version that failed to load is tried again."""

    num_load_threads: int = 0
    """Versions loaded at the same time. 0: two (tensorflow_model_server: one)."""

    load_retry_interval_micros: int = 60_000_000
    """Microseconds between two attempts to load a version."""

    enable_model_warmup: bool = True
    """Replay assets.extra/tf_serving_warmup_requests before a version becomes AVAILABLE."""

    num_request_iterations_for_warmup: int = 1
    """How many times the warm-up records are replayed."""

    enable_signature_method_name_check: bool = False
    """Demand that a signature's method_name is the one of the API that calls it."""

    enable_serialization_as_tensor_content: bool = False
    """Answer gRPC Predict with tensor_content instead of the repeated fields (float_val, ...)."""

    saved_model_tags: str = "serve"
    """Comma-separated tags of the MetaGraphDef to load."""

    grpc_max_threads: int = 0
    """Threads that process gRPC requests. 0: four per CPU, at least 32 (a request in a batching queue holds
    one)."""

    grpc_socket_path: str = ""
    """Serve the gRPC API on this UNIX socket, too."""

    grpc_channel_arguments: str = ""
    """Comma-separated key=value arguments for the gRPC server, such as grpc.max_connection_age_ms=2000."""

    enable_grpc_healthcheck_service: bool = False
    """Serve grpc.health.v1.Health."""

    enable_profiler: bool = True
    """Serve tensorflow.ProfilerService on the gRPC port, to those who may send ReloadConfig requests."""

    tensorflow_session_parallelism: int = 0
    """Threads of one TensorFlow session, for both intra- and inter-op parallelism, unless one of the next two is
    given. 0: TensorFlow's choice."""

    tensorflow_intra_op_parallelism: int = 0
    """Threads within one TensorFlow operation. 0: TensorFlow's choice."""

    tensorflow_inter_op_parallelism: int = 0
    """Operations of one request run in parallel. 0: TensorFlow's choice."""

    per_process_gpu_memory_fraction: float = 0.0
    """Share of the GPU's memory to allocate at the start, 0 to 1. 0: TensorFlow's choice."""

    monitoring_config_file: Path | None = None
    """MonitoringConfig in text format: Prometheus' page on the REST port, at /monitoring/prometheus/metrics
    or the path given there."""

    ssl_config_file: Path | None = None
    """SSLConfig in text format: TLS on the gRPC port, mutual with client_verify."""

    rest_ssl_config_file: Path | None = None
    """SSLConfig in text format: TLS on the REST port, mutual with client_verify; may be ssl_config_file's own
    (not in tensorflow_model_server)."""

    api_token_file: Path | None = None
    """Tokens, one a line: every call, health checks apart, must carry one of them as `Authorization: Bearer
    <token>`. Read again when it changes (not in tensorflow_model_server)."""

    reload_config_from: str = "loopback"
    """Who may send ReloadConfig requests: loopback (this machine), anywhere or nowhere (not in
    tensorflow_model_server, which obeys everybody)."""

    max_request_bytes: int = 2**31 - 1
    """Largest gRPC message or REST body, and what a gzip REST body may unpack to (never more than 100 MiB).
    Beyond: RESOURCE_EXHAUSTED or 413 (not in tensorflow_model_server)."""

    max_image_pixels: int = 100_000_000
    """Most pixels that an encoded image in a request may announce (all frames together). 0: no limit (not in
    tensorflow_model_server)."""

    http_max_head_bytes: int = 65536
    """Largest HTTP request line and headers together; beyond: 431 (not in tensorflow_model_server)."""

    http_head_timeout_seconds: float = 10.0
    """How long a client may take to send them; beyond: 408 (not in tensorflow_model_server)."""

    http_body_timeout_seconds: float = 300.0
    """How long a client may take to send a body; beyond: 408 (not in tensorflow_model_server)."""

    access_log_file: Path | None = None
    """One JSON line per request is appended here. None: no access log (not in tensorflow_model_server)."""

    verification_key: Path | None = None
    """EC public key, or trusted certificates (PEM): a version that they did not sign is not loaded. None:
    signatures are not asked for (not in tensorflow_model_server)."""

    prediction_log_folder: Path | None = None
    """A sample of requests and answers goes into TFRecord files of PredictionLog here. None: none (not in
    tensorflow_model_server)."""

    prediction_log_sampling_rate: float = 0.01
    """Share of the requests in that sample, 0 to 1 (not in tensorflow_model_server)."""

    otlp_endpoint: str = ""
    """Send OpenTelemetry traces there over OTLP/HTTP, such as http://localhost:4318. Empty: none (not in
    tensorflow_model_server)."""

    otlp_sampling_rate: float = 1.0
    """Share of the requests whose client traces nothing that get a span, 0 to 1 (not in
    tensorflow_model_server)."""

    admin_port: int | None = None
    """TCP port of /healthz, /readyz and /metrics, on the same host. 0: any free port. None: no admin port
    (not in tensorflow_model_server)."""

    tune: bool = False
    """Do not serve: measure the model, choose batching parameters for latency_target_ms, write them to tune_output
    (not in tensorflow_model_server)."""

    latency_target_ms: float = 50.0
    """With tune: what 99 % of the requests may take, in ms (not in tensorflow_model_server)."""

    tune_output: Path = Path("tuned")
    """With tune: the folder for batching.config and tf_serving_warmup_requests (not in tensorflow_model_server)."""

    tune_seconds: float = 3.0
    """With tune: how long each setting is measured (not in tensorflow_model_server)."""

    drain_seconds: float = 30.0
    """After SIGTERM: how long requests in flight may take before they are cut off (not in
    tensorflow_model_server)."""

    parent_pid: int = 0
    """Stop when this process is no longer the parent. 0: never (not in tensorflow_model_server)."""
