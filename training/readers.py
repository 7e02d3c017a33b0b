"""Every data set that timm reads, written out once as image files: torch/, hfds/, wds/ and tfds/.

Parity, evaluation and the pipeline take image files, so a data set of another form is read through timm's reader, one
time, into a folder; files keep their bytes where the reader has them (hfds, tfds), pixels are kept in PNG where it
decodes (torch, wds). Training, validation and serving then see the same images.

    python -m isthmus.training.readers < request.json        (in a process of its own)

tfds is TensorFlow's: its process holds TensorFlow, and no torch.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.lineage.files import canonical_json, sha256_text, staging_directory, write_json
from isthmus.training.config import DataConfig
from isthmus.training.errors import TrainingError

DONE = "labels.json"
"""Written last: {"classes": [...], "files": {path: [class index, ...]}}."""

READERS = ("torch", "hfds", "wds", "tfds")
MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"BM": ".bmp", b"RIFF": ".webp"}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a split."""

    image: Any
    """Encoded bytes, or a PIL image."""

    target: Any
    """A class index, or a dense vector of zeros and ones."""


def materialize(data: DataConfig, *, home: Path) -> Path:
    """The folder with the images of a timm reader: `<split>/<class>/<number>.<suffix>`, or `<split>/<number>.<suffix>`
    beside labels.json for multi-label targets. Does nothing when it is there.

    Raises TrainingError for a reader that does not exist, is not installed, or cannot read what it was given.
    """
    prefix = (data.reader or "").partition("/")[0].lower()
    if prefix not in READERS:
        raise TrainingError(
            f"data.reader {data.reader!r} is no reader; allowed: torch/NAME, hfds/NAME, wds/[NAME], tfds/NAME"
        )
    request = dataclasses.asdict(data) | {"root": str(data.root) if data.root is not None else None}
    request = {key: value for key, value in request.items() if key in REQUEST}
    folder = Path(home) / "data" / ".readers" / sha256_text(canonical_json(request))[:16]
    if (folder / DONE).is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with staging_directory(folder.parent) as staging:
        _run(request | {"folder": str(staging)}, reader=data.reader or "")
        staging.rename(folder)
    return folder


REQUEST = (
    "reader",
    "root",
    "train_split",
    "val_split",
    "test_split",
    "class_map",
    "download",
    "input_key",
    "target_key",
    "multi_label",
)
"""Keys of the recipe's data section that decide what is read."""


def _run(request: dict[str, Any], *, reader: str) -> None:
    """Read in a process of its own; its last line says what went wrong."""
    command = [sys.executable, "-m", "isthmus.training.readers"]
    done = subprocess.run(
        command,
        input=json.dumps(request),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.strip()] or ["nothing was said"]
        raise TrainingError(f"data.reader {reader} cannot read {request['root'] or 'its data'}: {said[-1]}")


def write(request: dict[str, Any]) -> None:
    """Read every split of a request into its folder; labels.json comes last. Raises whatever the reader raises."""
    folder, files = Path(request["folder"]), dict[str, list[int]]()
    prefix, _, name = request["reader"].partition("/")
    read: Callable[..., tuple[list[str], Iterable[Sample]]] = {
        "tfds": _tfds,
        "hfds": _hfds,
    }.get(prefix.lower(), _timm)
    classes: list[str] = []
    for split, source in (("train", "train_split"), ("val", "val_split"), ("test", "test_split")):
        if not request[source]:
            continue
        names, samples = read(request, name=name, split=request[source])
        classes = classes or list(names)
        for number, sample in enumerate(samples):
            targets = _indices(sample.target)
            if not names:
                # A reader without names counts: 0000, 0001, ...
                classes += [f"{index:04d}" for index in range(len(classes), max(targets, default=-1) + 1)]
            if targets and not 0 <= min(targets) <= max(targets) < len(classes):
                raise ValueError(
                    f"label {max(targets)} of image {number} in split {request[source]} is out of range: there are "
                    f"{len(classes)} classes"
                )
            place = (
                folder / split if request["multi_label"] else folder / split / _file_name(classes[targets[0]])
            )
            place.mkdir(parents=True, exist_ok=True)
            path = _save(sample.image, place / f"{number:07d}")
            files[path.relative_to(folder).as_posix()] = targets
    write_json(folder / DONE, {"classes": classes, "files": files})


def _timm(request: dict[str, Any], *, name: str, split: str) -> tuple[list[str], Iterable[Sample]]:
    """torch/ and wds/ through timm.data.create_dataset, whose images are decoded."""
    del name
    from timm.data import create_dataset

    given = {key: request[key] for key in ("class_map", "input_key", "target_key") if request[key]}
    if request["multi_label"]:
        given["target_format"] = "multihot"
    dataset = create_dataset(
        request["reader"], root=request["root"], split=split, download=request["download"], **given
    )
    owner: Any = getattr(dataset, "reader", dataset)
    names = getattr(dataset, "classes", None) or _by_index(getattr(owner, "class_to_idx", None) or {})

    def samples() -> Iterator[Sample]:
        for image, target in dataset:
            yield Sample(image=image, target=target)

    return [str(each) for each in names], samples()


def _hfds(request: dict[str, Any], *, name: str, split: str) -> tuple[list[str], Iterable[Sample]]:
    """hfds/ through timm's reader, which hands out the files as they are."""
    from timm.data.readers.reader_hfds import ReaderHfds

    given = {key: request[key] for key in ("class_map", "input_key", "target_key") if request[key]}
    if request["multi_label"]:
        given["target_format"] = "multihot"
    reader = ReaderHfds(name=name, root=request["root"], split=split, download=request["download"], **given)

    def samples() -> Iterator[Sample]:
        for index in range(len(reader)):
            image, target = reader[index]
            yield Sample(image=image.read(), target=target)

    return _by_index(reader.class_to_idx), samples()


def _tfds(request: dict[str, Any], *, name: str, split: str) -> tuple[list[str], Iterable[Sample]]:
    """tfds/ through tensorflow_datasets itself: timm's reader would load TensorFlow beside torch."""
    import tensorflow_datasets as tfds

    image, label = request["input_key"] or "image", request["target_key"] or "label"
    builder = tfds.builder(name, data_dir=request["root"])
    if request["download"]:
        builder.download_and_prepare()
    found = builder.as_dataset(split=split, decoders={image: tfds.decode.SkipDecoding()}, shuffle_files=False)
    feature = builder.info.features[label]
    names = list(
        getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None) or []
    )

    def samples() -> Iterator[Sample]:
        for each in tfds.as_numpy(found):
            target = each[label]
            if request["multi_label"] and not _is_dense(target, len(names)):
                target = [int(index in target) for index in range(len(names))]
            yield Sample(image=each[image], target=target)

    return names, samples()


def _is_dense(target: Any, num_classes: int) -> bool:
    return getattr(target, "shape", None) == (num_classes,) and set(map(int, target)) <= {0, 1}


def _indices(target: Any) -> list[int]:
    """[class] of a class index; the classes that are 1 of a dense vector."""
    try:
        return [index for index, value in enumerate(target) if value]
    except TypeError:
        return [int(target)]


def _by_index(class_to_index: dict[str, int]) -> list[str]:
    return [str(name) for name, _ in sorted(class_to_index.items(), key=lambda item: item[1])]


def _file_name(name: str) -> str:
    """A class as a folder: `/` would be another one below."""
    return name.replace("/", "_").strip() or "_"


def _save(image: Any, path: Path) -> Path:
    if isinstance(image, bytes):
        suffix = next((suffix for magic, suffix in MAGIC.items() if image.startswith(magic)), None)
        if suffix is not None:
            target = path.with_suffix(suffix)
            target.write_bytes(image)
            return target
        from PIL import Image

        image = Image.open(io.BytesIO(image))
    target = path.with_suffix(".png")
    image.convert("RGB").save(target, compress_level=1)
    return target


def main() -> int:
    """One request on standard input; what goes wrong is the last line."""
    request = json.load(sys.stdin)
    try:
        write(request)
    except ModuleNotFoundError as problem:
        print(f"{problem.name} is not installed; the extra readers brings it: pip install isthmus[readers]")
        return 1
    except Exception as problem:  # noqa: BLE001 - readers of five libraries fail in any way
        print(f"{type(problem).__name__}: {' '.join(str(problem).split())[:500]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
