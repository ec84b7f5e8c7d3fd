"""One example behind a gradient: the rank-one problem, whose label is one scalar λ away."""
