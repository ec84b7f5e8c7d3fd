"""Down a fully connected network, from the last layer's inputs to the images."""
