"""Benchmarks: each writes its table to `benchmarks/results/`; none is a timed test."""
