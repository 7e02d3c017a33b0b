"""The compatibility module for systems older than the wheels it helps."""

from __future__ import annotations

import ctypes
import platform
import shutil
import struct
import subprocess
import sysconfig
from pathlib import Path

import pytest

from isthmus.tfx_pipeline import glibc

SITE_PACKAGES = Path(sysconfig.get_path("platlib"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real shared library with a need for a version of libc's symbols."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "hello.cc").write_text('#include <stdio.h>\nextern "C" int hello() { return puts("hello"); }\n')
    subprocess.run(["g++", "-shared", "-fPIC", "-o", folder / "hello.so", folder / "hello.cc"], check=True)
    return (folder / "hello.so").read_bytes()


def needs(elf: bytes) -> dict[bytes, int]:
    """{symbol version: flags} of an ELF image."""
    return {name: struct.unpack_from("<H", elf, offset)[0] for offset, name in glibc._version_needs(elf)}


def test_real_library_needs_are_found_and_made_weak(library: bytes) -> None:
    version = b"GLIBC_2.2.5"
    assert needs(library)[version] == 0
    patched = glibc.weak_version_needs(library, frozenset({version}))
    assert needs(patched)[version] == glibc._VER_FLG_WEAK
    assert len(patched) == len(library)
    assert sum(a != b for a, b in zip(library, patched, strict=True)) == 1


def test_patched_library_still_loads_and_runs(library: bytes, tmp_path: Path) -> None:
    target = tmp_path / "patched.so"
    target.write_bytes(glibc.weak_version_needs(library, frozenset({b"GLIBC_2.2.5"})))
    assert ctypes.CDLL(str(target)).hello() > 0


def test_marking_twice_changes_nothing_more(library: bytes) -> None:
    versions = frozenset({b"GLIBC_2.2.5"})
    once = glibc.weak_version_needs(library, versions)
    assert glibc.weak_version_needs(once, versions) == once


def test_needs_that_are_not_named_are_left_alone(library: bytes) -> None:
    assert glibc.weak_version_needs(library) == library


def build(target: Path, source: str, *flags: str) -> Path:
    """Compile C++ into a shared library."""
    target.parent.mkdir(exist_ok=True)
    file = target.with_suffix(".cc")
    file.write_text(source)
    subprocess.run(["g++", "-shared", "-fPIC", "-o", str(target), str(file), *flags], check=True)
    return target


def test_a_need_for_a_newer_system_becomes_loadable(tmp_path: Path) -> None:
    """The whole trick in small: built against a new library, run with an old one and a shim."""
    old_source, new_source = 'extern "C" int old_() { return 1; }', 'extern "C" int probe() { return 2; }'
    (tmp_path / "old.map").write_text("LIB_1 { global: old_; };")
    (tmp_path / "new.map").write_text("LIB_1 { global: old_; };\nLIB_2 { global: probe; } LIB_1;")
    soname = "-Wl,-soname,libprobe.so"
    old = build(
        tmp_path / "old" / "libprobe.so", old_source, soname, f"-Wl,--version-script={tmp_path / 'old.map'}"
    )
    new = build(
        tmp_path / "new" / "libprobe.so",
        f"{old_source}\n{new_source}",
        soname,
        f"-Wl,--version-script={tmp_path / 'new.map'}",
    )
    strict = build(
        tmp_path / "user.so",
        'extern "C" int probe(); extern "C" int use() { return probe(); }',
        str(new),
        f"-Wl,-rpath,{old.parent}",
    )
    with pytest.raises(OSError, match="version `LIB_2' not found"):
        ctypes.CDLL(str(strict))

    weak = tmp_path / "weak.so"
    weak.write_bytes(glibc.weak_version_needs(strict.read_bytes(), frozenset({b"LIB_2"})))
    with pytest.raises(OSError, match="undefined symbol: probe"):
        ctypes.CDLL(str(weak))
    shim = build(tmp_path / "shim.so", 'extern "C" int probe() { return 3; }')
    ctypes.CDLL(str(shim), mode=ctypes.RTLD_GLOBAL)
    assert ctypes.CDLL(str(weak)).use() == 3


@pytest.mark.parametrize("image", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(60)])
def test_other_files_are_refused(image: bytes) -> None:
    with pytest.raises(glibc.GlibcError, match="not a 64-bit little-endian ELF file"):
        glibc.weak_version_needs(image)


def test_shim_exports_the_six_symbols(tmp_path: Path) -> None:
    glibc._compile_shim(tmp_path / "shim.so")
    shim = ctypes.CDLL(str(tmp_path / "shim.so"))
    for suffix in ("l", "ll", "ul", "ull"):
        convert = getattr(shim, f"__isoc23_strto{suffix}")
        convert.restype = ctypes.c_long
        assert convert(b"123", None, 10) == 123
    assert shim._ZSt21ios_base_library_initv is not None
    assert shim.__getattr__("__cxa_call_terminate") is not None


def test_a_missing_compiler_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        glibc.GlibcError, match=r"no C\+\+ compiler: 'no-such-compiler'.*install the package g\+\+"
    ):
        glibc._compile_shim(tmp_path / "shim.so")


def test_apply_puts_everything_in_place_once(tmp_path: Path) -> None:
    """On copies of the real modules, hard-linked as an installer leaves them."""
    cache = tmp_path / "cache"
    for name in glibc.EXTENSIONS:
        (cache / name).parent.mkdir(parents=True)
        shutil.copyfile(SITE_PACKAGES / name, cache / name)
        make_strict(cache / name)
    site = tmp_path / "site"
    shutil.copytree(cache, site, copy_function=lambda a, b: Path(b).hardlink_to(a))
    cached = {name: (cache / name).read_bytes() for name in glibc.EXTENSIONS}

    assert glibc.apply(site) == [site / name for name in glibc.EXTENSIONS]
    assert (site / "isthmus_glibc_shim.so").is_file()
    assert "RTLD_GLOBAL" in (site / "isthmus_glibc_shim.pth").read_text()
    assert {name: (cache / name).read_bytes() for name in glibc.EXTENSIONS} == cached
    assert glibc.apply(site) == []


def make_strict(path: Path) -> None:
    """Take the weak marks back out of a module, as its wheel has it."""
    elf = bytearray(path.read_bytes())
    for offset, name in glibc._version_needs(bytes(elf)):
        if name in glibc.NEWER_VERSIONS:
            struct.pack_into("<H", elf, offset, 0)
    path.write_bytes(elf)


def test_apply_without_the_packages_does_nothing(tmp_path: Path) -> None:
    assert glibc.apply(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_new_glibc_is_left_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.41"))
    monkeypatch.setattr(glibc, "apply", lambda _: pytest.fail("a new system must not be touched"))
    assert glibc.main() == 0
    assert "glibc 2.41: ml-metadata and TFDV load as they are; nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "needed"), [("2.36", True), ("2.38", True), ("2.39", False), ("2.41", False)]
)
def test_which_systems_need_it(monkeypatch: pytest.MonkeyPatch, version: str, needed: bool) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", version))
    assert glibc.is_needed() is needed


def test_the_environment_loads_both_modules() -> None:
    assert glibc.loads(SITE_PACKAGES)
