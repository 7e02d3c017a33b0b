"""Which code each component's answer depends on: a change there runs it again, and nothing else does."""

from __future__ import annotations

import shutil
from pathlib import Path

from isthmus.lineage.files import sha256_text
from isthmus.lineage.source import code_digest

_PIPELINE = "isthmus.tfx_pipeline"
_READS_MODEL = (
    f"{_PIPELINE}.artifacts",
    f"{_PIPELINE}.model_artifact",
    "isthmus.export.bundle",
    "isthmus.export.config",
    "isthmus.export.reference",
    "isthmus.lineage.files",
)
_MEASURES = (
    *_READS_MODEL,
    f"{_PIPELINE}.parity_validator",
    "isthmus.export.arithmetic",
    "isthmus.export.parity",
)

#: {component: modules and packages}; a test holds them against what these modules import. What a component reads of
#: another's artifacts is not its own: new code there makes new artifacts.
CODE = {
    "ImageExampleGen": (
        f"{_PIPELINE}.image_example_gen",
        f"{_PIPELINE}.classes",
        f"{_PIPELINE}.ingest",
        f"{_PIPELINE}.image_items",
        f"{_PIPELINE}.image_features",
        f"{_PIPELINE}.image_folder",
        f"{_PIPELINE}.example_bytes",
        f"{_PIPELINE}.listing",
        f"{_PIPELINE}.tfrecords",
        f"{_PIPELINE}.spans",
        "isthmus.lineage.files",
        "isthmus.lineage.places",
        "isthmus.lineage.splits",
    ),
    "ExampleValidator": (
        f"{_PIPELINE}.example_validator",
        f"{_PIPELINE}.anomalies",
        f"{_PIPELINE}.distances",
    ),
    "DataReport": (
        f"{_PIPELINE}.data_report",
        f"{_PIPELINE}.report_page",
        f"{_PIPELINE}.anomalies",
        f"{_PIPELINE}.artifacts",
    ),
    "BundleImporter": (
        f"{_PIPELINE}.bundle_importer",
        f"{_PIPELINE}.heads",
        f"{_PIPELINE}.remote",
        "isthmus.export.bundle",
        "isthmus.lineage.files",
        "isthmus.lineage.places",
    ),
    "ParityValidator": _MEASURES,
    "ChampionResolver": (f"{_PIPELINE}.champion_resolver", f"{_PIPELINE}.registered_model"),
    "Evaluator": (
        *_READS_MODEL,
        f"{_PIPELINE}.evaluator",
        f"{_PIPELINE}.evaluation_tally",
        f"{_PIPELINE}.evaluation_plots",
        f"{_PIPELINE}.slices",
    ),
    "ServerValidator": (
        *_MEASURES,
        f"{_PIPELINE}.server_validator",
        f"{_PIPELINE}.server_questions",
        f"{_PIPELINE}.server_budgets",
        f"{_PIPELINE}.external_server",
        "isthmus.serving",
    ),
    "Pusher": (
        f"{_PIPELINE}.pusher",
        f"{_PIPELINE}.publishing",
        f"{_PIPELINE}.remote",
        f"{_PIPELINE}.anomalies",
        f"{_PIPELINE}.evaluator",
        *_READS_MODEL,
    ),
    "Registrar": (f"{_PIPELINE}.registrar", f"{_PIPELINE}.evaluator", "isthmus.lineage"),
}


def code_keys(*, server_binary: str | None = None) -> dict[str, str]:
    """{component: digest of its code}.

    Args:
        server_binary: The model server that ServerValidator starts in place of the embedded one; a new one under the
            same name is asked again.
    """
    keys = {
        component: sha256_text("".join(code_digest(module) for module in modules))
        for component, modules in CODE.items()
    }
    if server_binary and (found := shutil.which(server_binary)):
        state = Path(found).stat()
        keys["ServerValidator"] = sha256_text(
            f"{keys['ServerValidator']} {state.st_size} {state.st_mtime_ns}"
        )
    return keys
