"""Local training, simulated: what several steps of SGD leave, and which examples leave it."""
