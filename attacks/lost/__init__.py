"""The entries of a gradient that a defense left out, found again: of one example, or of a batch."""
