"""Collects the smallest root file system that Python and a virtual environment run on: `rootfs.py TARGET VENV`.

In it: the interpreter with its compiled library, the environment, the shared libraries that both load, CA certificates,
time zones, one user. Not in it: a shell, a package manager, a compiler, pip, debug symbols. The records of the Debian
packages that the files come from are kept where scanners look for them.
"""

from __future__ import annotations

import compileall
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

UID = 10001
LEFT_OUT = (
    *(
        "__pycache__",
        "site-packages",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "tkinter",
        "turtledemo",
    ),
    *("test", "_test*.so", "xxlimited*.so", "config-*"),
)
LEFT_OUT_OF_THE_VENV = (
    "locales",
    "tests",
    "*.pyx",
    "*.pxd",
    "activate*",
    "*.bat",
)
LOADED_BY_NAME = ("libgcc_s.so.1",)  # by glibc, when a thread is cancelled
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
ZONES = Path("/usr/share/zoneinfo")
KEPT = (CERTIFICATES, ZONES, *map(Path, ("/etc/nsswitch.conf", "/etc/os-release", "/etc/ld.so.cache")))


def main(target: Path, venv: Path) -> None:
    """Fills `target`."""
    standard = Path(sysconfig.get_path("stdlib"))
    interpreter = Path(sys.executable).resolve()
    _copy_tree(standard, target, LEFT_OUT)
    _copy_tree(venv, target, LEFT_OUT_OF_THE_VENV)
    libraries = sorted(_libraries([interpreter, *_binaries(standard), *_binaries(venv)], venv))
    for path in (interpreter, *libraries, *KEPT):
        _copy(path, target)
    _strip(target)
    for name in ("python", "python3"):
        _there(interpreter.with_name(name), target).symlink_to(interpreter.name)
    _link_merged_folders(target)
    _record_packages([*libraries, CERTIFICATES, ZONES / "UTC"], target)
    (target / "etc/passwd").write_text(f"travelrec:x:{UID}:{UID}::/app:/sbin/nologin\n")
    (target / "etc/group").write_text(f"travelrec:x:{UID}:\n")
    (target / "tmp").mkdir()
    (target / "tmp").chmod(0o1777)
    compileall.compile_dir(_there(standard, target), stripdir=target, quiet=1)


def _there(path: Path, target: Path) -> Path:
    return target / path.relative_to("/")


def _strip(folder: Path) -> None:
    subprocess.run(["strip", "--strip-unneeded", *_binaries(folder)], check=True)


def _binaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.so*") if re.search(r"\.so(\.\d+)*$", path.name)]


def _libraries(binaries: Iterable[Path], venv: Path) -> Iterator[Path]:
    """Every file that the loader would take for these; those that wheels bring are in the environment."""
    found: set[Path] = set()
    for binary in binaries:
        said = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
        if missing := re.findall(r"(\S+) => not found", said):
            raise SystemExit(f"{binary} needs {', '.join(missing)}")
        found |= {Path(path) for path in re.findall(r"(?:=> |^\s*)(/\S+)", said, re.MULTILINE)}
    beside = next(path for path in found if path.name.startswith("libc.so")).parent
    found |= {beside / name for name in LOADED_BY_NAME}
    return (path for path in found if not path.is_relative_to(venv))


def _copy(path: Path, target: Path) -> None:
    """A file or folder at its own place; a link becomes what it leads to."""
    place = target / path.parent.resolve().relative_to("/") / path.name
    place.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, place, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(path, place)


def _copy_tree(folder: Path, target: Path, left_out: Iterable[str]) -> None:
    shutil.copytree(folder, _there(folder, target), symlinks=True, ignore=shutil.ignore_patterns(*left_out))


def _link_merged_folders(target: Path) -> None:
    """Where /lib is a link to /usr/lib it is one here too: the loader is asked for by its old name."""
    for name in ("bin", "lib", "lib64", "sbin"):
        original = Path("/") / name
        if original.is_symlink():
            (target / original.readlink().as_posix().lstrip("/")).mkdir(parents=True, exist_ok=True)
            (target / name).symlink_to(original.readlink())


def _record_packages(paths: Iterable[Path], target: Path) -> None:
    records = target / "var/lib/dpkg/status.d"
    records.mkdir(parents=True)
    for path in paths:
        for name in (path, path.resolve(), Path(str(path).removeprefix("/usr"))):
            said = subprocess.run(["dpkg", "-S", name], capture_output=True, text=True, check=False).stdout
            if said:
                package = said.split(": ", 1)[0].split(", ")[0]
                record = subprocess.run(["dpkg", "-s", package], capture_output=True, text=True, check=True)
                (records / package.split(":", maxsplit=1)[0]).write_text(record.stdout)
                break


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
