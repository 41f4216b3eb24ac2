"""Builds what the phases need, for the device that is there."""

import os
import shutil
import subprocess
from pathlib import Path

from .session import PASSED, ROOT, Session, StepFailed, report_problem

# Beside what a CUDA image has: compilers, CMake, CUDA. With what these need at run time. Debian 12's names.
PACKAGES = """libcli11-dev nlohmann-json3-dev libspdlog-dev libspdlog1.10 libfmt-dev libfmt9 libgtest-dev libgmock-dev libxxhash-dev
  libopenblas-openmp-dev libopenblas0-openmp liblapacke-dev liblapacke liblapack-dev liblapack3 libgfortran5 libquadmath0
  libtmglib3 libpcre2-dev libpcre2-8-0 pkgconf pkgconf-bin libpkgconf3""".split()


def pack(folder: Path) -> int:
    """Downloads the packages into `folder`."""
    if shutil.which("apt-get") is None:
        return report_problem("pack needs apt-get")
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=folder)
    if done.returncode == 0:
        megabytes = sum(file.stat().st_size for file in folder.glob("*.deb")) / 1e6
        print(f"{len(list(folder.glob('*.deb')))} packages, {megabytes:.0f} MB in {folder}")
    return done.returncode


def unpack(session: Session, packages: Path, to: Path) -> str:
    files = sorted(packages.glob("*.deb"))
    if not files:
        raise StepFailed(f"there is no .deb file in {packages}")
    to.mkdir(parents=True, exist_ok=True)
    for file in files:
        session.must(["dpkg", "-x", file, to], limit=60)
    machine = (
        subprocess.run(["gcc", "-print-multiarch"], capture_output=True, text=True).stdout.strip() or "x86_64-linux-gnu"
    )
    libraries = to / "usr/lib" / machine
    folders = [libraries, libraries / "openblas-openmp"]

    def put(name: str, *values) -> None:
        before = session.environment.get(name)
        session.environment[name] = os.pathsep.join([*map(str, values), *([before] if before else [])])

    put("CMAKE_PREFIX_PATH", to / "usr")
    put("CPATH", to / "usr/include", to / "usr/include" / machine, to / "usr/include" / machine / "openblas-openmp")
    put("LIBRARY_PATH", *folders)
    put("LD_LIBRARY_PATH", *folders)
    session.environment["PATH"] += os.pathsep + str(to / "usr/bin")
    # CMake hands CMAKE_PREFIX_PATH to pkg-config. What lapacke needs is chosen by links that only an installation makes.
    for name in ("blas", "lapack"):
        link = libraries / f"pkgconfig/{name}.pc"
        if not link.exists():
            link.symlink_to(libraries / f"openblas-openmp/pkgconfig/{name}-openblas.pc")
    return f"{len(files)} packages"


def targets(phases: list) -> list:
    wanted = ["polaron", "polaron_cuda"]
    if "kernels" in phases:
        wanted.append("bench_kernels")
    if "correctness" in phases:
        wanted.append("test_cuda")
    return wanted


def run(session: Session, chosen) -> bool:
    folder: Path = chosen.build
    if chosen.packages and not session.step(
        "packages", lambda: (PASSED, unpack(session, chosen.packages.resolve(), folder / "packages"), {})
    ):
        return False
    if chosen.no_build:

        def look():
            if not (folder / "polaron").exists():
                raise StepFailed(f"there is no {folder / 'polaron'}")
            return PASSED, f"as it is in {folder}", {}

        return session.step("programs", look)

    def configure_and_build():
        words = [
            "cmake",
            "-S",
            ROOT,
            "-B",
            folder,
            "-DCMAKE_BUILD_TYPE=Release",
            "-DPOLARON_BENCHMARKS=ON",
            "-Wno-dev",
            f"-DPOLARON_CUDA={'AUTO' if session.dry else 'ON'}",
            f"-DPOLARON_TESTS={'ON' if 'correctness' in chosen.phases else 'OFF'}",
        ]
        if shutil.which("ninja"):
            words += ["-G", "Ninja"]
        session.must(words, limit=120)
        wanted = [target for target in targets(chosen.phases) if not (session.dry and "cuda" in target)]
        seconds = 0.0
        for target in wanted:  # one by one: the log says which one took how long
            seconds += session.must(
                ["cmake", "--build", folder, "--target", target, "-j", str(os.cpu_count())], limit=1500
            ).seconds
        return PASSED, f"{', '.join(wanted)} in {seconds:.0f} s", {}

    return session.step("build", configure_and_build)
