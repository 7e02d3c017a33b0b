"""The data report: everything is said, nothing is fetched, nothing of the data becomes markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from isthmus.tfx_pipeline.report_page import Feature, Sample, page

INTAKE: dict[str, Any] = {
    "source": {"path": "/photos", "kind": "folder", "span": 3, "version": 0, "splits": "hash"},
    "num_corrupt": 1,
    "corrupt": [{"file": "a/<b>.png", "reason": "cut & off"}],
    "copies": {
        "num_copies": 2,
        "num_leaked": 1,
        "num_contradictory": 0,
        "groups": [
            {"splits": {"test": 1, "train": 1}, "num_labels": 1, "files": ["x.png", "y.png"]},
        ],
    },
}


def sample(name: str, mean: float) -> Sample:
    buckets = [(mean + step, mean + step + 1, 10.0) for step in range(10)]
    return Sample(
        name=name,
        num_images=100,
        features={
            "image/class/text": Feature(shares={"cat": 60, "<script>": 40}),
            "image/brightness": Feature(mean=mean + 5, std=3, low=mean, high=mean + 10, buckets=buckets),
            "image/height": Feature(mean=8, low=8, high=8),
        },
    )


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.points: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.points += [value for name, value in attributes if name == "points" and value]


def test_the_page() -> None:
    findings = {
        "anomalies": [
            {
                "where": "train split",
                "feature": "image/brightness",
                "expected": "60 to 140",
                "found": "2 to 6",
            }
        ],
        "compared": [
            {"split": "train", "kind": "drift", "feature": "image/brightness", "distance": 1.0, "limit": 0.2},
            {"split": "train", "kind": "skew", "feature": "image/height", "distance": 0.0, "limit": 0.2},
        ],
    }
    text = page([sample("train", 0), sample("served", 100)], intake=INTAKE, findings=findings)
    tags = Tags()
    tags.feed(text)
    assert "script" not in tags.seen
    assert not {"img", "link", "iframe", "object"} & set(tags.seen)
    assert not re.search(r"https?://|url\(|@import", text)
    for part in (
        "1 anomaly: nothing is pushed.",
        "<td>60 to 140</td><td>2 to 6</td>",
        "span 3; splits by the image's content",
        "&lt;script&gt;",
        "a/&lt;b&gt;.png",
        "cut &amp; off",
        "The same in every image: <code>image/height</code> 8.",
        "1 val and test images are also in another split",
        "<td>1.000</td><td>0.200</td><td><b>too far</b></td>",
    ):
        assert part in text, part
    # The two brightnesses share one axis: the first ends where the second has not begun.
    first, second = ([float(point.split(",")[0]) for point in points.split()] for points in tags.points)
    assert max(first) < min(second)


def test_nothing_wrong() -> None:
    intake = {**INTAKE, "num_corrupt": 0, "copies": {**INTAKE["copies"], "num_copies": 0}}
    text = page([sample("train", 0)], intake=intake, findings={"anomalies": [], "compared": []})
    for part in ("No anomalies: the data passed.", "There was nothing to compare with.", "<p>None.</p>"):
        assert part in text
