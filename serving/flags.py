"""tensorflow_model_server's command line for the embedded server: its flag names become `ServingConfig`
fields.

python -m isthmus.serving --model_name=digits --model_base_path=.isthmus/serving/digits --port=8500
"""

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from isthmus.serving import config
from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import ServingError

__all__ = ["UNSUPPORTED", "help_text", "markdown", "parse"]

# How the documentation of a field says that the original has no such flag, and perhaps what it does instead.
_OWN = re.compile(r" \(not in tensorflow_model_server(, [^()]+)?\)\.$")

# Values that switch a flag off.
_OFF = ("", "0", "false")

# Flags of tensorflow_model_server that mean nothing here, and why: refused by name unless they are switched off, never
# ignored.
UNSUPPORTED = {
    "experimental_cc_shared_library": "models run in the TensorFlow of this environment",
    "flush_filesystem_caches": "the page cache is the operating system's",
    "force_allow_any_version_labels_for_unavailable_models": "allow_version_labels_for_unavailable_models is",
    "mixed_precision": "a served model computes as it was verified",
    "model_metadata": "not in the releases whose API this is",
    "num_tflite_interpreters_per_pool": "SavedModels only",
    "num_tflite_pools": "SavedModels only",
    "num_unload_threads": "num_load_threads counts for both",
    "platform_config_file": "SavedModels only",
    "prefer_tflite_model": "SavedModels only",
    "remove_unused_fields_from_bundle_metagraph": "nothing is kept that is not used",
    "skip_initialize_tpu": "no TPUs",
    "tensorflow_session_config_file": "the tensorflow_*_parallelism flags are",
    "thread_pool_factory_config_file": "the tensorflow_*_parallelism flags are",
    "total_model_memory_limit_bytes": "not in the releases whose API this is",
    "use_alts_credentials": "ssl_config_file is",
    "use_tflite_model": "SavedModels only",
    "xla_cpu_compilation_enabled": "a served model computes as it was verified",
    "xla_gpu_compilation_enabled": "a served model computes as it was verified",
}


def parse(arguments: Sequence[str]) -> ServingConfig:
    """The configuration that a command line describes.

    Raises:
        ServingError: an unknown, unsupported or malformed flag, by name.
        SystemExit: after `--help` and `--version`.
    """
    parser = _parser()
    values = vars(parser.parse_args(_supported(arguments)))
    return ServingConfig(**{name: value for name, value in values.items() if value is not None})


def help_text() -> str:
    """What `--help` prints."""
    return _parser().format_help()


def markdown() -> str:
    """The tables of docs/serving.md: flags as in the original, flags of our own, flags that are refused."""
    documented = _field_docs()

    def table(names: Sequence[str]) -> list[str]:
        defaults = {option.name: _default(option) for option in fields(ServingConfig)}
        return [
            "| flag | default | |",
            "|---|---|---|",
            *(f"| `--{name}` | {_shown(defaults[name])} | {_own_text(documented[name])} |" for name in names),
        ]

    own = [name for name, text in documented.items() if _OWN.search(text)]
    lines = ["### As tensorflow_model_server has them", "", "`--version` and `--help`, and:", ""]
    lines += table([name for name in documented if name not in own])
    lines += ["", "### Of the embedded server alone", "", *table(own), "", "### Refused by name", ""]
    lines += ["Unless they are switched off (`--use_tflite_model=false`, `--platform_config_file=`):", ""]
    lines += ["| flag | why |", "|---|---|"]
    lines += [f"| `--{name}` | {why} |" for name, why in UNSUPPORTED.items()]
    return "\n".join(lines) + "\n"


def _own_text(text: str) -> str:
    """The documentation without its mark, unless that says more than the mark."""
    mark = _OWN.search(text)
    return text if mark is None or mark[1] is not None else text[: mark.start()]


def _write_page(path: Path) -> None:
    """Put the tables between the page's two marks."""
    before, start, rest = path.read_text().partition("<!-- flags -->\n")
    _, end, after = rest.partition("<!-- end of flags -->")
    path.write_text(before + start + markdown() + end + after)


def _shown(default: object) -> str:
    if default is None or default == "":
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        text = message.replace("unrecognized arguments: ", "unknown argument: ")
        raise ServingError(f"{text}; `isthmus serve --help` lists the flags")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="isthmus serve",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_versions(), help="print versions and exit")
    documented, types = _field_docs(), get_type_hints(ServingConfig)
    for option in fields(ServingConfig):
        default = _default(option)
        text = f"{documented[option.name]} [{'none' if default is None else default}]".replace("%", "%%")
        if types[option.name] is bool:
            parser.add_argument(
                f"--{option.name}", type=_bool, nargs="?", const=True, metavar="BOOL", help=text
            )
        else:
            kind = _value_type(types[option.name])
            parser.add_argument(
                f"--{option.name}",
                type=_path if kind is Path else kind,
                metavar=kind.__name__.upper(),
                help=text,
            )
    return parser


def _versions() -> str:
    """In tensorflow_model_server's own form; the first number is the release whose API this is."""
    return (
        f"TensorFlow ModelServer: {metadata.version('tensorflow-serving-api')} "
        f"(isthmus {metadata.version('isthmus')}, embedded)\n"
        f"TensorFlow Library: {metadata.version('tensorflow')}"
    )


def _value_type(annotation: Any) -> type:
    """The type of a flag's value: the one beside None."""
    choices = [choice for choice in get_args(annotation) or (annotation,) if choice is not type(None)]
    (kind,) = choices
    assert isinstance(kind, type)
    return kind


def _default(option: "Field[Any]") -> object:
    return option.default if option.default is not MISSING else None


def _bool(text: str) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return known[text.lower()]


def _path(text: str) -> Path | None:
    """Nothing is no path: as in the original, `--ssl_config_file=` is the same as no flag at all."""
    return Path(text) if text else None


def _supported(arguments: Sequence[str]) -> list[str]:
    """The arguments without those that switch an unsupported flag off: what they ask for is so.

    Raises:
        ServingError: an unsupported flag asks for something.
    """
    supported = []
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if not (argument.startswith("--") and name in UNSUPPORTED):
            supported.append(argument)
        elif not ("=" in argument and value.lower() in _OFF):
            raise ServingError(
                f"--{name} of tensorflow_model_server is not supported by the embedded server "
                f"({UNSUPPORTED[name]})"
            )
    return supported


def _field_docs() -> dict[str, str]:
    """The string literal under each field of `ServingConfig`."""
    (definition,) = [
        node
        for node in ast.parse(inspect.getsource(config)).body
        if isinstance(node, ast.ClassDef) and node.name == ServingConfig.__name__
    ]
    docs = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


if __name__ == "__main__":
    _write_page(Path(sys.argv[1]))
