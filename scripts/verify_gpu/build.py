"""Builds what the phases need, for the device that is there."""

import os
import shutil
import subprocess
from pathlib import Path

from .session import PASSED, ROOT, Session, StepFailed, StepUnfinished, report_problem

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
    return f"{len(files)} packages"


def use_unpacked(session: Session, folder: Path) -> None:
    """Compilers, CMake and the loader find what was unpacked there."""
    machine = (
        subprocess.run(["gcc", "-print-multiarch"], capture_output=True, text=True).stdout.strip() or "x86_64-linux-gnu"
    )
    usr = folder / "usr"
    libraries = usr / "lib" / machine
    folders = [libraries, libraries / "openblas-openmp"]
    session.put_first("CMAKE_PREFIX_PATH", usr)
    session.put_first("CPATH", usr / "include", *(usr / "include" / machine / name for name in ("", "openblas-openmp")))
    session.put_first("LIBRARY_PATH", *folders)
    session.put_first("LD_LIBRARY_PATH", *folders)
    session.environment["PATH"] += os.pathsep + str(usr / "bin")
    # CMake hands CMAKE_PREFIX_PATH to pkg-config. What lapacke needs is chosen by links that only an installation makes.
    for name in ("blas", "lapack"):
        link = libraries / f"pkgconfig/{name}.pc"
        if link.parent.is_dir() and not link.exists():
            link.symlink_to(libraries / f"openblas-openmp/pkgconfig/{name}-openblas.pc")


# Of all phases, since a later call may find the programs of this one and nothing to build with in the time.
TARGETS = {
    "polaron": "polaron",
    "polaron_cuda": "libpolaron_cuda.so",
    "test_cuda": "tests/cuda/test_cuda",
    "bench_kernels": "bench_kernels",
}
NEEDED = ("polaron", "polaron_cuda")


def run(session: Session, chosen) -> bool:
    """Whether there is something to run."""
    folder: Path = chosen.build
    unpacked = folder / "packages"
    if chosen.packages and not session.step(
        "packages", lambda: (PASSED, unpack(session, chosen.packages.resolve(), unpacked), {})
    ):
        return False
    if unpacked.is_dir():  # also of an earlier call
        use_unpacked(session, unpacked)
    if chosen.no_build:

        def look():
            if not (folder / "polaron").exists():
                raise StepFailed(f"there is no {folder / 'polaron'}")
            return PASSED, f"as it is in {folder}", {}

        return session.step("programs", look)

    wanted = [target for target in TARGETS if not (session.dry and "cuda" in target)]
    broken = []

    def make(names: list, *options):
        jobs = ["-j", str(os.cpu_count())]
        return session.command(["cmake", "--build", folder, *jobs, "--target", *names, *options], limit=1500)

    def configure_and_build():
        words = [
            "cmake",
            "-S",
            ROOT,
            "-B",
            folder,
            "-DCMAKE_BUILD_TYPE=Release",
            "-DPOLARON_BENCHMARKS=ON",
            "-DPOLARON_TESTS=ON",
            "-Wno-dev",
            f"-DPOLARON_CUDA={'AUTO' if session.dry else 'ON'}",
        ]
        if shutil.which("ninja"):
            words += ["-G", "Ninja"]
        broken.extend(wanted)  # until shown otherwise
        session.must(words, limit=120)
        finished = make(wanted, "--", "-k", *(["0"] if "Ninja" in words else []))
        if finished.cut_short:
            raise StepUnfinished(f"the build: {finished.why()} with the time for all")
        broken.clear()
        if finished.code == 0:
            return PASSED, f"{', '.join(wanted)} in {finished.seconds:.0f} s", {}
        reasons = []
        for target in wanted:  # an old program of one that fails must not pass for a new one
            each = make([target])
            if each.code != 0:
                broken.append(target)
                (folder / TARGETS[target]).unlink(missing_ok=True)
                reasons.append(f"{target}: {each.why()}")
        raise StepFailed("\n".join(reasons) or f"all targets: {finished.why()}")

    session.step("build", configure_and_build)
    return not any(target in NEEDED for target in broken)
