"""The shared library of kernels.cpp and cells.cpp: built by the machine's compiler on first use, which takes seconds, and cached."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernels.cpp", "cells.cpp"))
HEADERS = (Path(__file__).with_name("vectors.h"),)
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC")


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library; None, and a line on stderr, if it cannot be built."""
    try:
        return ctypes.CDLL(str(built()))
    except OSError as error:
        print(f"no kernels for space.impl=fused, the plain form runs, several times slower: {error}", file=sys.stderr)
        return None


def built() -> Path:
    """Return the path of the library for this source, compiler and CPU; build it if it is not there.

    The environment variable CXX may name another compiler, with flags of its own.

    Raises:
        OSError: there is no compiler, it fails, or nothing can be written.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise OSError(f"no C++ compiler found (CXX, {', '.join(COMPILERS)})")
    command = [*compiler.split(), *FLAGS]
    key = hashlib.sha256(
        repr((command, [file.read_bytes() for file in (*SOURCES, *HEADERS)], _cpu())).encode()
    ).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "darts-template"
    path = folder / f"kernels-{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            target = Path(temporary, path.name)
            done = subprocess.run(
                [*command, *map(str, SOURCES), "-o", str(target)], check=False, capture_output=True, text=True
            )
            if done.returncode:
                first = next((line for line in done.stderr.splitlines() if "error" in line), f"exit {done.returncode}")
                raise OSError(f"{' '.join(command)}: {first}")
            target.replace(path)
    return path


def _cpu() -> str:
    """Return what tells CPUs apart for which -march=native differs: machines may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return os.uname().machine
    return "".join(sorted({line for line in lines if line.startswith(("model", "flags", "CPU", "Features"))}))
