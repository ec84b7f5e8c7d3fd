"""Every example's soft label and feature out of a whole batch's last-layer gradient.

With B examples behind it, `G = ∂L/∂W = (1/B) Σ_b (p_b − y_b) x_bᵀ`. Features that come out of a
ReLU are non-negative and sparse, so each is an extreme ray of the cone of non-negative vectors in
the row space of G, with many more zeros than an accidental one. Five steps, five modules:

1. `subspace`: the live units, and the space that the features span;
2. `propose`: linear programs (solved by `interior_point`) that end on extreme rays;
3. `sharpen`: a ray from all its zeros at once;
4. `accept`: by its geometry, and by a label that explains it;
5. `labels`: labels and scales, one scalar problem for each ray.

Steps 2 to 4 take turns: what is found is peeled off the gradient, so that the rest gets easier.
"""
