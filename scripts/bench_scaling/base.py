"""What all parts share: what is measured and planned, and short words for it."""

from dataclasses import dataclass, field

EXCHANGES = ("parameters", "factors", "sketch")


@dataclass
class Measured:
    processes: int
    exchange: str  # of a single process: empty, for it exchanges nothing
    threads: int  # a process
    tokens_per_s: float  # median over the steps that count
    quartiles: tuple
    moved_a_step: int  # bytes, all processes together
    load: float  # average of the last minute, before the run
    device: str = field(default="", repr=False)


@dataclass
class Planned:
    processes: int
    exchange: str
    moved_a_step: int  # bytes, all processes together
    memory: int  # bytes of process 0


def name_of(processes: int, exchange: str) -> str:
    if processes == 1:
        return "one process"
    return f"{processes} processes, exchange of {'sketches' if exchange == 'sketch' else exchange}"


def format_bytes(count: float) -> str:
    """As polaron plan prints it, in powers of 1000."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def format_rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def format_time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
