"""The model_config_file and ReloadConfig requests: a tensorflow.serving.ModelServerConfig to `ModelSettings`.

Rules and texts are those of tensorflow_serving/model_servers/server_core.cc.
"""

import re
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.status import Code
from isthmus.serving.versions import ModelSettings, VersionPolicy

__all__ = ["read_file", "read_text_proto", "settings"]

PLATFORM = "tensorflow"
# tsl/platform/path.cc, ParseURI.
_URI = re.compile(r"(?P<scheme>[A-Za-z][0-9A-Za-z.]*)://[^/]*(?P<path>/.*)?", re.DOTALL)


def read_text_proto(path: Path, message: Any) -> Any:
    """Fill a message from a file in protobuf's text format.

    Raises:
        ServingError: the file cannot be read or is no such message; names the file and the place in it.
    """
    try:
        return text_format.Parse(path.read_text(), message)
    except OSError as error:
        raise ServingError(f"cannot read {path}: {error.strerror}") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        # Both texts are the original's: protobuf's own on its stderr, and its parser's.
        name = message.DESCRIPTOR.full_name
        raise ServingError(
            f"Invalid protobuf file: '{path}': Error parsing text-format {name}: {error}"
        ) from error


def read_file(path: Path) -> list[ModelSettings] | None:
    """The models that a model_config_file lists; None when it holds no configuration at all, which an empty
    `model_config_list {}` is.

    Raises:
        ServingError: the file is unreadable or invalid.
        RequestError: it lists something that cannot be served.
    """
    from tensorflow_serving.config import model_server_config_pb2

    config = read_text_proto(path, model_server_config_pb2.ModelServerConfig())
    return None if config.WhichOneof("config") is None else settings(config)


def settings(config: Any) -> list[ModelSettings]:
    """The models that a ModelServerConfig lists, checked.

    Raises:
        RequestError: INVALID_ARGUMENT.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise _invalid("the embedded server serves a model_config_list; custom_model_config is not supported")
    models: dict[str, ModelSettings] = {}
    for entry in config.model_config_list.config:
        if entry.name in models:
            raise _invalid(f"Illegal to list model {entry.name} multiple times in config list")
        base_path = _base_path(entry)
        platform = _platform(entry)
        if platform != PLATFORM:
            raise _invalid(f"Model {entry.name} requests unsupported platform {platform}")
        models[entry.name] = ModelSettings(
            name=entry.name,
            base_path=base_path,
            policy=_policy(entry.model_version_policy),
            labels=dict(entry.version_labels),
        )
    return list(models.values())


def _base_path(entry: Any) -> Path:
    """The folder that a path or a file:// URI names; as TensorFlow reads URIs: nothing is unquoted, the host does not
    matter."""
    uri = _URI.fullmatch(entry.base_path)
    if uri is None and not entry.base_path.startswith("/"):
        raise _invalid(
            f"Expected model {entry.name} to have an absolute path or URI; got base_path()={entry.base_path}"
        )
    if uri is None:
        return Path(entry.base_path)
    if uri["scheme"] != "file" or not uri["path"]:
        raise _invalid(
            f"model {entry.name}: the embedded server reads folders of this machine, as /path or file:///path; got "
            f"base_path()={entry.base_path}"
        )
    return Path(uri["path"])


def _platform(entry: Any) -> str:
    platform: str = entry.model_platform
    if entry.model_type:
        if platform:
            raise _invalid(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and "
                "ModelServerConfig::model_platform."
            )
        if entry.model_type != 1:
            raise _invalid(f"ModelServerConfig::model_type choice {entry.model_type} not supported.")
        return PLATFORM
    if not platform:
        raise _invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            "ModelServerConfig::model_platform."
        )
    return platform


def _policy(policy: Any) -> VersionPolicy:
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(kind="all")
    if choice == "specific":
        return VersionPolicy(kind="specific", versions=frozenset(policy.specific.versions))
    return VersionPolicy(num_versions=max(policy.latest.num_versions, 1))


def _invalid(message: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, message)
