"""Two real data sets as arrays: scikit-learn's digits and Fashion-MNIST. No torch, unless it has to
download."""

import gzip
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isthmus.training.config import DataConfig
from isthmus.training.errors import TrainingError

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its four files."""

FASHION_MNIST_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
"""By the labels 0 to 9 of the original files."""


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Images of one size and their classes, split."""

    images: "np.ndarray"
    """uint8 [N, H, W], grey."""

    labels: "np.ndarray"
    """int64 [N], indices into `classes`."""

    classes: tuple[str, ...]
    splits: dict[str, "np.ndarray"]
    """int64 indices into images, for train, val and test."""


def digits(data: DataConfig) -> Arrays:
    """The 1,797 digits (8 x 8, 17 grey levels) of 43 writers that scikit-learn carries, split with equal
    class shares.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part).
    """
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 0..16 becomes 0..255; 255/16 keeps all 17 levels apart.
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    rest, test = _stratified(np.arange(len(labels)), labels, share=data.test_fraction, seed=data.split_seed)
    share = data.val_fraction / (1 - data.test_fraction)
    train, val = _stratified(rest, labels, share=share, seed=data.split_seed)
    splits = {"train": train, "val": val, "test": test}
    return Arrays(images=images, labels=labels, classes=tuple("0123456789"), splits=splits)


def fashion_mnist(data: DataConfig, *, download_to: Path) -> Arrays:
    """60,000 + 10,000 articles of clothing, 28 x 28 grey; val is carved out of the 60,000 with equal class
    shares.

    Raises TrainingError when neither Debian's package nor a download is there.
    """
    import numpy as np

    folder = FASHION_MNIST_FOLDER if FASHION_MNIST_FOLDER.is_dir() else _download_fashion_mnist(download_to)
    log.info("fashion_mnist: reading %s", folder)
    train_images = read_idx(folder / "train-images-idx3-ubyte.gz")
    train_labels = read_idx(folder / "train-labels-idx1-ubyte.gz")
    test_images = read_idx(folder / "t10k-images-idx3-ubyte.gz")
    test_labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz")
    labels = np.concatenate([train_labels, test_labels]).astype(np.int64)
    train, val = _stratified(
        np.arange(len(train_labels)), labels, share=data.val_fraction, seed=data.split_seed
    )
    return Arrays(
        images=np.concatenate([train_images, test_images]),
        labels=labels,
        classes=FASHION_MNIST_CLASSES,
        splits={"train": train, "val": val, "test": np.arange(len(train_labels), len(labels))},
    )


def read_idx(path: Path) -> "np.ndarray":
    """A gzipped IDX file (Y. LeCun's format: two zero bytes, type, rank, then the big-endian sizes) of
    uint8.

    Raises TrainingError when it is missing, cut short or something else.
    """
    import numpy as np

    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError) as problem:
        raise TrainingError(
            f"cannot read {path}: {problem}; install dataset-fashion-mnist again"
        ) from problem
    if content[:3] != b"\0\0\x08":
        raise TrainingError(f"{path} is not an IDX file of bytes (it starts with {content[:4].hex()})")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4).astype(int)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if values.size != shape.prod():
        raise TrainingError(f"{path} is cut short: {values.size} of {shape.prod()} values; install it again")
    return values.reshape(shape)


def _download_fashion_mnist(folder: Path) -> Path:
    """torchvision's download (the only part here that imports torch); it checks the files' MD5."""
    log.info("fashion_mnist: %s is not there, downloading with torchvision", FASHION_MNIST_FOLDER)
    try:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(root=str(folder), download=True)
    except (ImportError, OSError, RuntimeError) as problem:
        reason = str(problem).strip().splitlines() or [type(problem).__name__]
        raise TrainingError(
            f"Fashion-MNIST is not at hand: {FASHION_MNIST_FOLDER} is missing (Debian, Ubuntu: apt install "
            f"dataset-fashion-mnist), and torchvision's download failed ({reason[-1]}); mend one of the two"
        ) from problem
    return folder / "FashionMNIST" / "raw"


def _stratified(
    indices: "np.ndarray", labels: "np.ndarray", *, share: float, seed: int
) -> tuple["np.ndarray", "np.ndarray"]:
    """(rest, chosen): `share` of `indices`, each class in proportion, both sorted."""
    import numpy as np
    from sklearn.model_selection import train_test_split

    rest, chosen = train_test_split(indices, test_size=share, random_state=seed, stratify=labels[indices])
    return np.sort(rest), np.sort(chosen)
