"""The page of a chain, in a real browser: Chromium, without a window."""

from __future__ import annotations

import html as entities
import json
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from isthmus.cli.main import main
from isthmus.lineage import page, query, registry, verify
from isthmus.lineage.chain import Chain

CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PHONE, DESKTOP = (390, 1600), (1280, 1600)


@pytest.fixture(scope="module")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    pytest.fail("the lineage page is checked in a real browser: install Debian's package `chromium`")


@pytest.fixture
def shown(chromium: str, tmp_path: Path):
    """Runs the browser on a page; `shown(text, "--dump-dom")` gives what it printed."""

    def run(text: str, *options: str) -> str:
        file = tmp_path / "page.html"
        file.write_text(text, encoding="utf-8")
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        done = subprocess.run(
            [chromium, *CHROMIUM_FLAGS, profile, *options, file.as_uri()],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def screenshot(shown, tmp_path: Path):
    def take(text: str, size: tuple[int, int]) -> Image.Image:
        target = tmp_path / f"{size[0]}.png"
        shown(text, f"--window-size={size[0]},{size[1]}", f"--screenshot={target}")
        with Image.open(target) as image:
            return image.convert("RGB")

    return take


def chain_of(told, subject: str = "digits") -> Chain:
    return query.lineage(subject, home=told[0].home)


def test_the_page_asks_for_nothing_and_is_well_formed(told):
    text = page.html(chain_of(told))
    assert not re.findall(r"""(?:src|href|action|data)\s*=\s*["'](?!#)""", text)
    for reaching_out in ("url(", "@import", "<script", "<iframe"):
        assert reaching_out not in text
    assert "default-src 'none'" in text
    svgs = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(svgs) == 2
    for svg in svgs:
        ElementTree.fromstring(svg)
    targets = set(re.findall(r'href="#([^"]+)"', text))
    assert targets == set(re.findall(r'<section [^>]*id="([^"]+)"', text))


def test_a_browser_shows_every_thing_of_both_frameworks_with_its_whole_digest(told, shown):
    story = told[0]
    chain = chain_of(told)
    dom = entities.unescape(shown(page.html(chain, verify.verify(chain)), "--dump-dom"))
    ids = story.manifest["export"]["mlflow"]
    for whole in (
        story.data_digest,
        story.manifest["training"]["source"]["commit"],
        story.manifest["training"]["checkpoint_sha256"],
        story.manifest["export"]["onnx_sha256"],
        story.manifest["saved_model_digest"],
        story.train_run,
        story.export_run,
        story.pipeline_run,
        ids["onnx_model_id"],
        ids["saved_model_id"],
        str(story.pushed),
        "no link is broken; some could not be checked",
        "there was no champion",
    ):
        assert whole in dom, whole
    assert dom.count('class="dot holds"') == 2 * 9
    assert dom.count('class="dot unknown"') == 2


def test_phone_and_desktop_each_have_their_picture_and_nothing_sticks_out(told, screenshot):
    text = page.html(chain_of(told))
    desktop, phone = screenshot(text, DESKTOP), screenshot(text, PHONE)
    paper = desktop.getpixel((1, 1))
    assert paper == phone.getpixel((1, 1))
    for image in (desktop, phone):
        width, height = image.size
        edge = {image.getpixel((width - 2, y)) for y in range(height)}
        assert edge == {paper}, "something reaches the right edge"
    # Across, the boxes fill the width below the head; down, they fill the height.
    assert _extent(desktop, paper, axis=0) > 0.9 * DESKTOP[0]
    boxes = phone.crop((0, 120, PHONE[0], 900))
    assert _extent(boxes, paper, axis=1) > 0.95 * 780


def _extent(image: Image.Image, paper: tuple[int, ...], *, axis: int) -> int:
    """From the first to the last column (axis 0) or row (axis 1) that is not all paper, in pixels."""
    from PIL import ImageChops

    box = ImageChops.difference(image, Image.new("RGB", image.size, paper)).getbbox()
    assert box is not None, "the page is empty"
    return box[2 + axis] - box[axis]


def test_a_broken_link_is_the_first_thing_said(tell, home, shown):
    story = tell("a")
    (story.pushed / "saved_model.pb").write_bytes(b"other")
    chain = query.lineage("digits", home=home)
    dom = shown(page.html(chain, verify.verify(chain)), "--dump-dom")
    assert '<p class="verdict broken">a link is broken</p>' in dom
    assert 'class="dot broken"' in dom
    assert "saved_model.pb was changed" in dom


def test_several_models_share_what_they_have_in_common(told):
    text = page.html(chain_of(told, told[0].data_digest))
    across = re.findall(r'<svg class="graph across".*?</svg>', text, flags=re.DOTALL)[0]
    assert across.count('class="box registry"') == 2
    # One code, one data set, and all else twice.
    assert across.count('class="box source"') == 2
    assert across.count('class="box torch"') == 4


def test_what_people_wrote_is_text_and_no_markup(tell, home):
    tell("a")
    tell("b")
    registry.promote("digits", by="<b>operator</b>", why="<script>alert(1)</script>")
    text = page.html(query.lineage("digits", home=home))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_command_writes_page_and_bom_and_says_where(told, tmp_path, capsys):
    page_file, bom_file = tmp_path / "page.html", tmp_path / "bom.json"
    home = str(told[0].home)
    assert main(["lineage", "digits", "--home", home, "--html", str(page_file), "--bom", str(bom_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("digits version 1 · champion")
    assert lines[-2:] == [f"written: {page_file}", f"written: {bom_file}"]
    assert page_file.read_text().startswith("<!doctype html>")
    assert json.loads(bom_file.read_text())["bomFormat"] == "CycloneDX"
