"""Benchmarks: attacks beside published figures, what scenarios leak, and what simulating costs.

`fl-sim bench` runs them. Each module has `rows`, which measures and yields one flat row for each
setting, and most have `figure`, which draws the rows.
"""
