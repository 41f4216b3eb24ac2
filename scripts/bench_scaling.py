#!/usr/bin/env python3
"""Sets the speed and traffic of training on several processes beside what is planned: see --help."""

import sys

from bench_scaling.cli import main

if __name__ == "__main__":
    sys.exit(main())
