"""Run all benchmarks, or those named: `python -m benchmarks [name …]`."""

from __future__ import annotations

import importlib
import sys

NAMES = ("audit_overhead", "engines", "leakage")

if __name__ == "__main__":
    chosen = sys.argv[1:] or NAMES
    unknown = [name for name in chosen if name not in NAMES]
    if unknown:
        sys.exit(f"unknown benchmark {unknown[0]!r}; known: {', '.join(NAMES)}")
    for name in chosen:
        print(importlib.import_module(f"benchmarks.{name}").main())
