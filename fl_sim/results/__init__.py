"""Runs and sweeps as data: numbers that compare them, pandas DataFrames of what they recorded."""
