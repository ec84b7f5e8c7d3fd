"""Attacks on labels: one file a method."""
