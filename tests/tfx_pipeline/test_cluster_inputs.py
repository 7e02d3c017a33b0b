"""What a run on a cluster reads: folders of this machine uploaded, volumes and stores read where they are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tfx.types import standard_artifacts

from isthmus.tfx_pipeline import remote
from isthmus.tfx_pipeline.cluster_inputs import bundle_for_cluster, source_for_cluster
from isthmus.tfx_pipeline.data_config import InputConfig
from isthmus.tfx_pipeline.errors import PipelineError
from isthmus.tfx_pipeline.image_example_gen import read_report
from isthmus.tfx_pipeline.sources import Source

LABELS = ["blue", "green", "red"]
Ingest = Callable[..., standard_artifacts.Examples]


def test_an_uploaded_span_keeps_its_numbers(
    images: Path, tmp_path: Path, bucket: str, ingest_source: Ingest
) -> None:
    shutil.copytree(images, tmp_path / "span-3" / "v2")
    pattern = str(tmp_path / "span-{SPAN}" / "v{VERSION}")
    source, record = source_for_cluster(
        InputConfig(path=pattern), data_root=None, labels=LABELS, root=f"{bucket}/uploaded-span"
    )
    assert source.path.startswith(f"{bucket}/uploaded-span/data/")
    assert record["source"] == str(tmp_path / "span-3" / "v2")
    examples = ingest_source(source, tmp_path / "examples")
    assert (examples.span, examples.version) == (3, 2)
    assert read_report(examples)["source"]["path"] == source.path
    assert read_report(examples)["num_images"] == {"train": 48, "val": 18, "test": 30}


def test_a_recurring_run_finds_the_latest_span_itself(
    images: Path, tmp_path: Path, ingest_source: Ingest
) -> None:
    for place in ("span-1/v1", "span-2/v1"):
        shutil.copytree(images, tmp_path / place)
    pattern = str(tmp_path / "span-{SPAN}" / "v{VERSION}")

    def source(*, span: int | None, recurring: bool) -> Source:
        found, _ = source_for_cluster(
            InputConfig(path=pattern, span=span),
            data_root=None,
            labels=LABELS,
            root="s3://unused",
            volumes=[str(tmp_path)],
            recurring=recurring,
        )
        return found

    once, every_day = source(span=None, recurring=False), source(span=None, recurring=True)
    always_the_first = source(span=1, recurring=True)
    for place in ("span-1/v2", "span-3/v1"):
        shutil.copytree(images, tmp_path / place)
    read = {}
    for name, each in (("once", once), ("every day", every_day), ("the first", always_the_first)):
        examples = ingest_source(each, tmp_path / "examples" / name)
        read[name] = (examples.span, examples.version)
    assert read == {"once": (2, 1), "every day": (3, 1), "the first": (1, 2)}


def test_a_multi_label_bundle_is_not_uploaded(multi_label_bundle: Path, bucket: str) -> None:
    root, there = f"{bucket}/multi-label", f"{bucket}/multi-label-there"
    text = "is a multi_label model; the pipeline's images have one label each"
    with pytest.raises(PipelineError, match=text):
        bundle_for_cluster(multi_label_bundle, root=root)
    assert remote.files(root) == []
    remote.send_tree(multi_label_bundle, there)
    with pytest.raises(PipelineError, match=f"{there} {text}"):
        bundle_for_cluster(there, root=root)
