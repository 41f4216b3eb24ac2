"""The phase `train`: whole training steps, their speed and their memory."""

from dataclasses import dataclass, field

from . import device, losses
from .kernels import read_json
from .session import MEASURED, ROOT, Session


@dataclass
class Case:
    config: str
    micro_batch: int
    batch: int  # sequences of 1024 tokens a step
    settings: dict = field(default_factory=dict)
    name: str = ""


ADAMW = {"optimizer.matrices": {"type": "adamw", "lr": 6e-4}}
MUON = {"optimizer.matrices": {"type": "muon", "newton_schulz_precision": "bf16"}}
LOW_RANK = {"optimizer.matrices": {"type": "low_rank_muon", "rank": "1/8", "newton_schulz_precision": "bf16"}}
CASES = [
    Case("gpt2-124m", 32, 512, ADAMW, "AdamW"),
    Case("gpt2-1558m", 8, 32, LOW_RANK, "low-rank Muon"),
    Case("llama-350m", 16, 128, ADAMW, "AdamW"),
    Case("gpt2-124m", 32, 512, LOW_RANK, "low-rank Muon"),
    Case("gpt2-124m", 32, 512, MUON, "Muon"),
    Case("gpt2-350m", 16, 128, LOW_RANK, "low-rank Muon"),
    Case("gpt2-774m", 8, 64, LOW_RANK, "low-rank Muon"),
    Case("llama-1b", 8, 64, LOW_RANK, "low-rank Muon"),
    Case("gpt2-124m", 32, 512, ADAMW | {"precision": "tf32"}, "AdamW, all in tf32"),
]
TINY = {"model.layers": 1, "model.width": 64, "model.heads": 1, "model.vocabulary": 256, "model.context_length": 32}


def row_of(case: Case, bench: dict, plan: dict, most_memory: int, datasheet_flops: float | None) -> dict:
    rate = plan["flops_a_token"] * bench["tokens_per_s"]
    planned = plan["memory"]["total"]
    return {
        "config": case.config,
        "optimizer": case.name,
        "micro_batch": case.micro_batch,
        "batch": case.batch,
        "sequence_length": bench["sequence_length"],
        "ms": bench["ms"],
        "tokens_per_s": bench["tokens_per_s"],
        "flops_a_token": plan["flops_a_token"],
        "tflops": rate * 1e-12,
        "mfu_datasheet": rate / datasheet_flops if datasheet_flops else None,
        "mfu_measured": rate / bench["gemm_flops"],
        "planned_bytes": planned,
        "peak_bytes": most_memory or None,
        "peak_over_plan": most_memory / planned if most_memory else None,
    }


def run(session: Session, chosen) -> None:
    polaron = chosen.build / "polaron"
    rates = None if session.dry else device.datasheet(session.about["device"]["name"])
    for case in [Case("gpt2-124m", 2, 4, {}, "low-rank Muon")] if session.dry else CASES:

        def work(case=case):
            settings = {
                "training.batch": case.batch,
                "training.micro_batch": case.micro_batch,
                "model.context_length": 1024,
                "device": "cpu" if session.dry else "cuda",
                "precision": "fp32" if session.dry else "bf16",
            }
            settings |= case.settings | (TINY if session.dry else {})
            words = [ROOT / f"configs/{case.config}.json", *losses.set_words(settings)]
            step_file, plan_file = session.out / "step.json", session.out / "plan.json"
            watch = None if session.dry else device.MemoryWatch()
            try:
                session.must([polaron, "plan", *words, "--json", plan_file], limit=60)
                session.must(
                    [polaron, "bench", "step", *words, "--repeats", 1 if session.dry else 5, "--json", step_file],
                    limit=200,
                    watch=watch,
                )
                bench, plan = read_json(step_file), read_json(plan_file)
            finally:
                step_file.unlink(missing_ok=True)
                plan_file.unlink(missing_ok=True)
            row = row_of(case, bench, plan, watch.most if watch else 0, rates[0] * 1e12 if rates else None)
            mfu = f"MFU {100 * row['mfu_datasheet']:.1f} %, " if row["mfu_datasheet"] else ""
            memory = (
                f"; {row['peak_bytes'] / 2**30:.1f} GiB, planned {row['planned_bytes'] / 2**30:.1f}" if watch else ""
            )
            return (
                MEASURED,
                (
                    f"{row['tokens_per_s']:,.0f} tokens/s, {mfu}{100 * row['mfu_measured']:.1f} % of the largest "
                    f"product{memory}"
                ),
                row | {"ops": bench["ops"]},
            )

        session.step(
            f"training step, {case.config}, {case.name}, micro-batch {case.micro_batch}",
            work,
            needs=0 if session.dry else 45,
        )
