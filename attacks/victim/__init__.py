"""A model and its gradients, as an attacker reads them."""
