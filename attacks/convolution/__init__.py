"""Down a chain of convolutions, from the last feature to the image."""
