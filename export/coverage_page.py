"""docs/coverage.md from a coverage run's results, and back: which models stand there as passing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isthmus.lineage.files import write_text

_HEAD = """# Coverage: timm's model families across the bridge

Written by `isthmus export --coverage`; do not edit. Each model module of timm {timm} is here with its smallest
variant (least parameters × pixels among those likely small; timm's `test_*` models left out), random weights
under which numbers mean something (how: `export/torch_half/randomize.py`), a dynamic batch, fp32, 100 classes.

- **error**: max |Δlogit| ÷ standard deviation of torch's logits between images, averaged over classes; measured
  on the SavedModel reloaded by a fresh process with TensorFlow's default settings (grappler and oneDNN on), through
  `tf.saved_model.load` and the v1 session that TensorFlow Serving uses, at batch 1, 3 and 8, on {num_images} windows
  of scikit-learn's two photographs. Limit: 1e-3, and the best class is torch's on every image that is no tie.
- **ONNX**: the same of ONNX Runtime on model.onnx. **own**: of torch's float32 against its float64, how far
  rounding alone goes; **shift**: how near to linear the net had to be drawn to be so well conditioned.
- **M params**: a family whose smallest variant has more than 300 million is built with fewer blocks, named here.
- **s**: wall seconds of the whole, torch's half included, on a busy 2-core machine. **MB**: peak of the process
  that converts, beside the weights'. **T**: Transposes left in the optimised graph. **rung**: what won.
"""


def write(path: Path, results: Mapping[str, dict[str, Any]], *, families: Sequence[str]) -> None:
    """Write the page: totals, the table, and every failure with its reason.

    Args:
        path: The file.
        results: Last result by family.
        families: All there are: those without a result are named as not run yet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(results, families=families))


def page(results: Mapping[str, dict[str, Any]], *, families: Sequence[str]) -> str:
    """The page's text."""
    rows = [results[family] for family in families if family in results]
    rows += [result for family, result in sorted(results.items()) if family not in families]
    missing = [family for family in families if family not in results]
    failed = [row for row in rows if not row["passed"]]
    timm = next((row["versions"].get("timm") for row in rows), "?")
    parts = [_HEAD.format(timm=timm, num_images=8), _totals(rows, failed, missing), _table(rows)]
    if failed:
        parts.append("## Failing\n\n" + "\n".join(_failure(row) for row in failed) + "\n")
    if missing:
        parts.append(f"## Not run yet\n\n{', '.join(missing)}\n")
    return "\n".join(parts)


def passing(text: str) -> dict[str, str]:
    """Family → model of every row of the page that passed."""
    found = re.findall(r"^\| (\S+) \| `(\S+)` \|.*\| (onnx2tf|direct) \|", text, flags=re.M)
    return {family: model for family, model, _ in found}


def _totals(rows: list[dict[str, Any]], failed: list[dict[str, Any]], missing: list[str]) -> str:
    passed = len(rows) - len(failed)
    share = f"{100 * passed / len(rows):.1f} %" if rows else "none"
    by_rung = Counter(row["rung"] for row in rows if row["passed"])
    rungs = ", ".join(f"{count} by {rung}" for rung, count in sorted(by_rung.items())) or "none"
    open_ones = f"; {len(missing)} families have not been run yet" if missing else ""
    return f"**{passed} of {len(rows)} pass ({share}): {rungs}{open_ones}.**\n"


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| family | model | M params | input | error | ONNX | own | shift | s | MB | weights MB | T | rung |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_row(row) for row in rows]) + "\n"


def _row(row: dict[str, Any]) -> str:
    choice = row.get("choice") or {}
    randomization = row.get("randomization") or {}
    last = row["rungs"][-1] if row["rungs"] else {}
    size = "×".join(str(edge) for edge in (row.get("input_size") or choice.get("input_size") or [])[1:])
    cells = [
        row["family"],
        f"`{choice.get('model', '?')}`",
        _parameters(choice),
        size,
        _number(last.get("error")),
        _number(row.get("onnx_error")),
        _number(randomization.get("conditioning")),
        f"{randomization['shift']:g}" if randomization else "",
        f"{row['seconds']:.0f}",
        _megabytes(last.get("conversion_memory_bytes")),
        _megabytes(row.get("weights_bytes")),
        "" if last.get("transposes") is None else str(last["transposes"]),
        row["rung"] if row["passed"] else "**none**",
    ]
    return f"| {' | '.join(cells)} |"


def _parameters(choice: dict[str, Any]) -> str:
    if not choice:
        return ""
    made = ", ".join(f"{name} {value}" for name, value in (choice.get("args") or {}).items())
    return f"{choice['num_parameters'] / 1e6:.1f}{f' ({made})' if made else ''}"


def _failure(row: dict[str, Any]) -> str:
    model = (row.get("choice") or {}).get("model", "no model chosen")
    reason = " ".join(str(row.get("problem")).split())
    # Where this machine keeps its files is nobody's reason.
    reason = re.sub(r"(?<=[\s(])/\S*?/(site-packages|coverage/logs)/", "", reason)
    return f"- **{row['family']}** (`{model}`): {reason}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:.0f}"
