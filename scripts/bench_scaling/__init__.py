"""The parts of scripts/bench_scaling.py; see cli.py for what it does."""
