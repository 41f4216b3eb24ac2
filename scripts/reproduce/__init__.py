"""The parts of scripts/reproduce.py; see there for what it does, and cli.py for how the parts meet."""
