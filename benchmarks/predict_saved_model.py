"""Classifies the files of a split with a pushed SavedModel, from bytes: prints {path: class id} as JSON.

python benchmarks/predict_saved_model.py SAVED_MODEL SPLIT_FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tensorflow as tf


def main(saved_model: Path, split: Path) -> None:
    serve = tf.saved_model.load(str(saved_model)).signatures["serving_default"]
    paths = sorted(path for path in split.rglob("*") if path.is_file())
    predicted: dict[str, int] = {}
    for start in range(0, len(paths), 64):
        batch = paths[start : start + 64]
        answer = serve(image_bytes=tf.constant([path.read_bytes() for path in batch]))
        for path, class_id in zip(batch, answer["class_id"].numpy(), strict=True):
            predicted[path.relative_to(split).as_posix()] = int(class_id)
    print(json.dumps(predicted))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
