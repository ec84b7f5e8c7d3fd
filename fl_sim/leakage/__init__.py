"""Attack an update, judge what comes of it, and write it down."""
