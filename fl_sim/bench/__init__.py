"""Benchmarks of attacks: success, cost and honesty over many gradients, beside published figures.

`fl-sim bench` runs them. Each module has `rows`, which measures and yields one flat row for each
setting, and most have `figure`, which draws the rows.
"""
