"""Lets ml-metadata and TFDV 1.21 load on systems whose glibc is older than 2.39.

    python tfx_pipeline/glibc.py        # after the install, with the environment's own Python

The two packages publish wheels for `manylinux_2_39` only (Debian 13, Ubuntu 24.04). On Debian 12 or Ubuntu 22.04
their extension modules ask the loader for three symbol versions that the system's libraries do not define, yet use
just six symbols of them. This module marks those version needs as weak (`VER_FLG_WEAK` in `.gnu.version_r`; see the
LSB's *Symbol Versioning* chapter) and compiles a library of the six symbols that a `.pth` file loads, globally,
before them.

It is a convenience for development machines and unsupported upstream. Where glibc is 2.39 or newer it does nothing;
the images have such a glibc and do not need it. It uses the standard library alone, because it runs before anything
else of the environment can be trusted.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

REQUIRED_GLIBC = (2, 39)

#: The extension modules, as import-relative paths below site-packages.
EXTENSIONS = (
    "ml_metadata/metadata_store/pywrap/metadata_store_extension.so",
    "tensorflow_data_validation/pywrap/tensorflow_data_validation_extension.so",
)

#: The symbol versions the two modules need beyond Debian 12's glibc 2.36 and GCC 12's libstdc++.
NEWER_VERSIONS = frozenset({b"GLIBC_2.38", b"GLIBCXX_3.4.32", b"CXXABI_1.3.15"})

# The __isoc23_ functions are strtol and its kin with C23's "0b" prefix, which neither module parses.
SHIM_SOURCE = r"""
#include <cstdlib>
#include <exception>
#include <iostream>
extern "C" {
long __isoc23_strtol(const char *s, char **end, int base) { return std::strtol(s, end, base); }
long long __isoc23_strtoll(const char *s, char **end, int base) { return std::strtoll(s, end, base); }
unsigned long __isoc23_strtoul(const char *s, char **end, int base) { return std::strtoul(s, end, base); }
unsigned long long __isoc23_strtoull(const char *s, char **end, int base) { return std::strtoull(s, end, base); }
void __cxa_call_terminate(void *) { std::terminate(); }
void _ZSt21ios_base_library_initv() { static std::ios_base::Init init; }
}
"""

_SHIM_NAME = "isthmus_glibc_shim.so"
_PTH_NAME = "isthmus_glibc_shim.pth"
_SHT_GNU_VERNEED = 0x6FFFFFFE
_VER_FLG_WEAK = 0x2


class GlibcError(RuntimeError):
    """The compatibility module could not be put in place; the text says what to install."""


def system_glibc() -> tuple[int, int]:
    """Returns the running system's glibc version as (major, minor), or (0, 0) where there is none."""
    name, version = platform.libc_ver()
    if name != "glibc":
        return (0, 0)
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def is_needed() -> bool:
    """Tells whether this system's glibc is older than what the two packages were built for."""
    return system_glibc() < REQUIRED_GLIBC


def weak_version_needs(elf: bytes, versions: frozenset[bytes] = NEWER_VERSIONS) -> bytes:
    """Returns a 64-bit little-endian ELF image in which the needs for `versions` are marked weak.

    Args:
      elf: The whole file.
      versions: Names of symbol versions, such as `GLIBC_2.38`.

    Raises:
      GlibcError: The image is no 64-bit little-endian ELF file.
    """
    if elf[:6] != b"\x7fELF\x02\x01":
        raise GlibcError("not a 64-bit little-endian ELF file")
    patched = bytearray(elf)
    for flags_offset, name in _version_needs(elf):
        if name in versions:
            (flags,) = struct.unpack_from("<H", patched, flags_offset)
            struct.pack_into("<H", patched, flags_offset, flags | _VER_FLG_WEAK)
    return bytes(patched)


def _version_needs(elf: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields (file offset of vna_flags, version name) of every entry of .gnu.version_r."""
    (section_table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_size, num_sections = struct.unpack_from("<HH", elf, 0x3A)
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", elf, section_table + index * entry_size)
        for index in range(num_sections)
    ]
    for section in sections:
        if section[1] != _SHT_GNU_VERNEED:
            continue
        need, strings = section[4], sections[section[6]][4]
        while True:
            _, num_aux, _, first_aux, next_need = struct.unpack_from("<HHIII", elf, need)
            aux = need + first_aux
            for _ in range(num_aux):
                _, _, _, name_offset, next_aux = struct.unpack_from("<IHHII", elf, aux)
                start = strings + name_offset
                yield aux + 4, elf[start : elf.index(b"\0", start)]
                aux += next_aux
            if not next_need:
                break
            need += next_need


def _publish(path: Path, content: bytes) -> None:
    """Writes beside `path` and renames: installers hard-link packages into a cache that must not change."""
    handle, beside = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    mode = path.stat().st_mode if path.exists() else 0o644
    os.chmod(beside, mode & 0o777)
    os.replace(beside, path)


def _compile_shim(target: Path) -> None:
    compiler = os.environ.get("CXX", "g++")
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder, "shim.cc"), Path(folder, "shim.so")
        source.write_text(SHIM_SOURCE)
        try:
            subprocess.run(
                [compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(source)],
                check=True,
                capture_output=True,
                text=True,
            )
        except FileNotFoundError as error:
            raise GlibcError(
                f"no C++ compiler: {compiler!r} was not found; install the package g++"
            ) from error
        except subprocess.CalledProcessError as error:
            raise GlibcError(f"{compiler} failed: {error.stderr.strip().splitlines()[-1]}") from error
        _publish(target, built.read_bytes())


def apply(site_packages: Path) -> list[Path]:
    """Puts the shim and the weak version needs in place; running it twice changes nothing more.

    Args:
      site_packages: The environment's folder of platform-specific packages.

    Returns:
      The extension modules that were changed by this call.

    Raises:
      GlibcError: There is no C++ compiler, or a module is not the kind of file expected.
    """
    present = [path for name in EXTENSIONS if (path := site_packages / name).is_file()]
    if not present:
        return []
    shim = site_packages / _SHIM_NAME
    if not shim.exists():
        _compile_shim(shim)
    loader = f"import ctypes, os; p = {str(shim)!r}; os.path.exists(p) and ctypes.CDLL(p, mode=ctypes.RTLD_GLOBAL)\n"
    pth = site_packages / _PTH_NAME
    if not pth.exists() or pth.read_text() != loader:
        _publish(pth, loader.encode())
    changed = []
    for path in present:
        before = path.read_bytes()
        after = weak_version_needs(before)
        if after != before:
            _publish(path, after)
            changed.append(path)
    return changed


def loads(site_packages: Path) -> bool:
    """Tells whether every extension module that is there can be loaded by this process."""
    for path in (site_packages / name for name in EXTENSIONS):
        if path.is_file():
            try:
                ctypes.CDLL(str(path))
            except OSError:
                return False
    return True


def main() -> int:
    glibc = ".".join(map(str, system_glibc()))
    if not is_needed():
        print(f"glibc {glibc}: ml-metadata and TFDV load as they are; nothing to do")
        return 0
    try:
        changed = apply(Path(sysconfig.get_path("platlib")))
    except GlibcError as error:
        print(
            f"glibc {glibc} is older than 2.39 and the compatibility module failed: {error}", file=sys.stderr
        )
        return 1
    names = ", ".join(path.parts[-3] for path in changed) or "nothing left to change"
    print(f"glibc {glibc} is older than 2.39: compatibility symbols for {names}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
