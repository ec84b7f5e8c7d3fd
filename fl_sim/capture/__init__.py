"""What a server saw of each client, on the disk: attacked after the round, or years later.

`docs/capture.md` describes the files. Nothing here imports Flower.
"""
