"""Solvers that know nothing of gradients."""
