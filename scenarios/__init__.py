"""Runnable scenarios: one TOML file each, with its purpose and run time in its header."""
