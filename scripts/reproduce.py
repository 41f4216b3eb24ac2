#!/usr/bin/env python3
"""Runs, or continues, a grid of trainings that compare optimizers, and makes tables and figures of them: see --help."""

import sys

from reproduce.cli import main

if __name__ == "__main__":
    sys.exit(main())
