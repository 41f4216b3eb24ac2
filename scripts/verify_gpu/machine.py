"""Is what the build and the programs need on this machine? Told before anything takes time."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from . import losses
from .session import PASSED, Session, StepFailed

TOOLS = ("cmake", "c++", "nvcc")
CUDA = 13
HEADERS = ("cuda_bf16.h", "cublasLt.h", "cusolverDn.h")
LIBRARIES = ("libcublasLt.so.13", "libcusolver.so.12")  # opened at run time
LOAD = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"


def loads(session: Session, library: str) -> bool:
    return session.command([sys.executable, "-c", LOAD, library], limit=60).code == 0


def wheels() -> list:
    """Folders of NVIDIA's Python packages: machines with PyTorch have the libraries and their headers there."""
    return [Path(folder) / "nvidia" for folder in sys.path if (Path(folder) / "nvidia").is_dir()]


def version_of(nvcc: str) -> str:
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    return found[1] if found else "0.0"


def find_headers(session: Session, toolkit: Path) -> list:
    """Those that are missing; where they are in Python's packages only, the compilers are told so."""
    missing = []
    places = [toolkit / "include", *toolkit.glob("targets/*/include")]
    places += [Path(folder) for folder in session.environment.get("CPATH", "").split(":") if folder]
    for header in HEADERS:
        if any((folder / header).exists() for folder in places):
            continue
        if found := [file.parent for folder in wheels() for file in folder.glob(f"*/include/{header}")]:
            session.put_first("CPATH", found[0])
            places.append(found[0])
        else:
            missing.append(header)
    return missing


def find_libraries(session: Session, toolkit: Path) -> list:
    """Those that cannot be loaded; where they are in Python's packages only, the loader is told so."""

    def missing() -> list:
        folders = ["", *(f"{folder}/" for folder in (toolkit / "lib64", toolkit / "lib"))]
        return [name for name in LIBRARIES if not any(loads(session, folder + name) for folder in folders)]

    if not (without := missing()):
        return []
    folders = sorted({file.parent for folder in wheels() for file in folder.glob("*/lib/lib*.so*")})
    if not folders:
        return without
    session.put_first("LD_LIBRARY_PATH", *folders)
    return missing()


def check(session: Session, chosen) -> bool:
    """Whether it is worth going on."""
    lacks_for_build = False

    def work():
        nonlocal lacks_for_build
        nvcc = shutil.which("nvcc")
        toolkit = Path(nvcc).resolve().parents[1] if nvcc else Path("/usr/local/cuda")
        missing, version = [], version_of(nvcc) if nvcc else "none"
        if not chosen.no_build:
            missing += [tool for tool in TOOLS if shutil.which(tool) is None]
            if nvcc and int(version.split(".")[0]) < CUDA:
                missing.append(f"CUDA {CUDA} (nvcc is of {version})")
            missing += find_headers(session, toolkit)
            lacks_for_build = bool(missing)
        missing += find_libraries(session, toolkit)
        if missing:
            raise StepFailed(f"missing: {', '.join(missing)}; looked in {toolkit} and in NVIDIA's Python packages")
        notes = [f"CUDA {version} in {toolkit}"]
        if not shutil.which("compute-sanitizer"):
            notes.append("no compute-sanitizer")
        if "correctness" in chosen.phases and not (chosen.data / losses.SHARD).exists():
            notes.append(f"no {losses.SHARD} in {chosen.data}: the CPU's losses will be computed here")
        return PASSED, "; ".join(notes), {}

    session.step("what is needed", work)
    return not lacks_for_build
