"""Attacks on images: one file a method."""
