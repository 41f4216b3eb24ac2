"""The phase `kernels`: single ops against their floors, and optimizer steps by width and rank."""

import json
import math
from pathlib import Path

from . import losses
from .session import MEASURED, ROOT, Session, StepFailed, StepSkipped, StepUnfinished

# width -> layers: enough matrices to fill a device, and not so many that drawing them takes the phase's time.
LAYERS = {768: 12, 1024: 24, 2048: 12, 4096: 8}
RANKS = ("1/8", "1/16", "1/4")
FLOOR_BYTES = 22  # an element: gradient and momentum read, momentum and master written, master read, bf16 copy written


def read_json(path: Path) -> dict:
    if not path.exists():
        raise StepFailed(f"there is no {path.name}")
    return json.loads(path.read_text(encoding="utf-8"))


def ops(session: Session, chosen) -> None:
    def work():
        file = session.out / "kernels.json"
        program = chosen.build / "bench_kernels"
        if chosen.no_build and not program.exists():
            raise StepSkipped(f"there is no {program}; -DPOLARON_BENCHMARKS=ON builds it")
        words = [program, "--json", file]
        words += (
            ["--device", "cpu", "--least", "--models", "tiny-gpt2,tiny-llama"] if session.dry else ["--device", "cuda"]
        )
        file.unlink(missing_ok=True)  # of an earlier run
        finished = session.command(words, limit=240)
        data = read_json(file)  # of the cases that were done, also where the program was ended
        session.about["gemm_flops"], session.about["copy_bytes_per_s"] = data["gemm_flops"], data["copy_bytes_per_s"]
        if finished.code != 0:
            ended = StepUnfinished if finished.cut_short else StepFailed
            raise ended(f"{finished.why()}; {len(data['cases'])} cases are in {file.name}", data)
        return (
            MEASURED,
            (
                f"{len(data['cases'])} cases; largest product {data['gemm_flops'] * 1e-12:.1f} TFLOP/s, copy "
                f"{data['copy_bytes_per_s'] * 1e-9:.0f} GB/s"
            ),
            data,
        )

    session.step("ops against their floors", work, needs=0 if session.dry else 30)


def optimizer_settings(width: int, layers: int, rank: str) -> dict:
    return {
        "model.layers": layers,
        "model.width": width,
        "model.heads": width // 64,
        "model.vocabulary": 256,
        "optimizer.matrices.rank": rank,
    }


def optimizer_rows(data: dict, width: int, layers: int, rank: str, copy_rate: float | None) -> list:
    """The benchmark's methods with times against the floor."""
    elements = 12 * layers * width * width
    rows = []
    for method in data["methods"]:
        floor = 1e3 * FLOOR_BYTES * elements / copy_rate if copy_rate else math.nan
        rows.append(
            {
                "width": width,
                "layers": layers,
                "rank": rank,
                "method": method["method"],
                "ms": method["ms"],
                "times_muon": method["times_muon"],
                "floor_ms": floor,
                "times_floor": method["ms"] / floor,
            }
        )
    return rows


def optimizers(session: Session, chosen) -> None:
    widths = {64: 1} if session.dry else LAYERS
    for rank in RANKS[:1] if session.dry else RANKS:
        for width, layers in widths.items():

            def work(rank=rank, width=width, layers=layers):
                file = session.out / "optimizer.json"
                settings = optimizer_settings(width, layers, rank)
                settings |= (
                    {"device": "cpu"}
                    if session.dry
                    else {"device": "cuda", "precision": "bf16", "optimizer.matrices.newton_schulz_precision": "bf16"}
                )
                try:
                    session.must(
                        [
                            chosen.build / "polaron",
                            "bench",
                            "optimizer",
                            ROOT / "configs/gpt2-124m.json",
                            "--repeats",
                            1 if session.dry else 10,
                            "--json",
                            file,
                            *losses.set_words(settings),
                        ],
                        limit=150,
                    )
                    data = read_json(file)
                finally:
                    file.unlink(missing_ok=True)
                rows = optimizer_rows(data, width, layers, rank, session.about.get("copy_bytes_per_s"))
                named = {row["method"]: row for row in rows}
                low = named["low_rank_muon, columns"]
                return (
                    MEASURED,
                    (
                        f"muon {named['muon']['ms']:.2f} ms, low rank {low['ms']:.2f} ms: {low['times_muon']:.1f} times "
                        f"faster, {low['times_floor']:.1f} times the floor"
                    ),
                    {"rows": rows},
                )

            session.step(
                f"optimizer step, {layers} layers of {width}, rank {rank}", work, needs=0 if session.dry else 25
            )


def orthogonalization(session: Session, chosen) -> None:
    """How much of the nuclear norm each method captures, on matrices of known singular values."""

    def work():
        file = session.out / "orthogonalize.json"
        size = 32 if session.dry else 1024
        try:
            session.must(
                [
                    chosen.build / "polaron",
                    "bench",
                    "orthogonalize",
                    "--device",
                    "cpu" if session.dry else "cuda",
                    "--size",
                    size,
                    "--repeats",
                    1 if session.dry else 10,
                    "--json",
                    file,
                ],
                limit=100,
            )
            rows = read_json(file)["results"]
        finally:
            file.unlink(missing_ok=True)
        return MEASURED, f"{len(rows)} rows, {size} x {size}", {"orthogonalization": rows}

    session.step("orthogonalization by rank and sketch", work, needs=0 if session.dry else 25)


def run(session: Session, chosen) -> None:
    ops(session, chosen)
    optimizers(session, chosen)
    orthogonalization(session, chosen)
