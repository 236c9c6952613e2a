"""Build kernels.c once for this machine and load it; every way that this can fail ends in None."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

log = logging.getLogger("normrepro")

SOURCES = ("kernels.c", "sweeps.h", "layers.h")
FLAGS = ("-O3", "-std=gnu11", "-fPIC")
# Tried in turn. Peeling a loop to reach an aligned address would make sums depend on addresses.
TUNING = (
    ("-march=native", "-mprefer-vector-width=512", "--param=vect-max-peeling-for-alignment=0"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
ARGUMENTS = {
    "moments": 4,
    "mean_square": 3,
    "affine": 4,
    "normalize": 8,
    "backward_sums": 8,
    "combine": 7,
    "backward": 9,
    "centre": 3,
    "threshold_sums": 5,
}


def library(real: str) -> ctypes.CDLL | None:
    """Return the functions of kernels.c for REAL = `real` ("float" or "double"), or None."""
    try:
        runtime = _openmp()
        path = _cache() / f"kernels-{real}-{_key(runtime)}.so"
        return _load(path) or _build(path, real, runtime)
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("no compiled kernels: %s", error)
        return None


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "normrepro"


def _key(runtime: str | None) -> str:
    """Hash all that a library depends on: sources, flags, OpenMP runtime, processor."""
    folder = Path(__file__).parent
    parts = [(folder / name).read_text() for name in SOURCES]
    parts += [str((FLAGS, TUNING)), Path(runtime or "none").name, platform.platform(), _features()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _openmp() -> str | None:
    """Find the OpenMP runtime that torch has loaded: a second one would fight it for the cores."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = {line.split()[-1] for line in lines if "/libgomp" in line or "/libiomp5" in line}
    home = str(Path(torch.__file__).parent)
    return min(paths, key=lambda path: (not path.startswith(home), path), default=None)


def _load(path: Path) -> ctypes.CDLL | None:
    if not path.exists():
        return None
    runtime = _openmp()
    if runtime is not None:
        ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError:
        return None
    for name, count in ARGUMENTS.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = [ctypes.c_void_p] * count, None
    return loaded


def _build(path: Path, real: str, runtime: str | None) -> ctypes.CDLL | None:
    """Compile in a folder of its own, then move: several processes may build at once."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built, complaint = Path(folder, path.name), ""
        for flags in _variants(runtime):
            complaint = _compile(compiler, [*flags, f"-DREAL={real}"], built)
            if complaint is None and (loaded := _load(built)):
                os.replace(built, path)
                log.warning("built the CPU kernels for this machine, once: %s", path)
                return loaded
    log.warning("the CPU kernels cannot be built (torch's operations serve): %s", complaint)
    return None


def _variants(runtime: str | None) -> Iterator[tuple[str, ...]]:
    for threads in ("-fopenmp",) if runtime else (), ("-fopenmp-simd",), ():
        for tuning in TUNING:
            yield (*FLAGS, *threads, *tuning)


def _compile(compiler: str, flags: list[str], target: Path) -> str | None:
    """Compile and link; the OpenMP runtime is left to be found in the process.

    Returns:
        None, or what the compiler has to say.
    """
    object_file = target.with_suffix(".o")
    source = str(Path(__file__).parent / SOURCES[0])
    for command in (
        [compiler, *flags, "-c", source, "-o", str(object_file)],
        [compiler, "-shared", str(object_file), "-o", str(target), "-lm"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            return next(iter(done.stderr.splitlines()), f"{compiler} gives {done.returncode}")
    return None
