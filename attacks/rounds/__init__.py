"""All rounds of a client that trains on the same examples in each, against noise.

[ours] Noise is drawn anew in every round; what the client trains on is not. Every round's gradient
of the first layer, `∂L_r/∂W₁ = Σ_b δ_rb x_bᵀ / n`, has the row space of the images, whatever the
weights of the round are, so that the rounds' sum of `Gᵀ G / σ²` shows it ever more clearly:
isotropic noise shifts all its eigenvalues alike. Four steps:

1. `problem`: that space, each round in its coordinates, and whether rounds share their examples;
2. `start`: rough examples, by the masks of all rounds' units together, as of one wide layer;
3. `refine`: examples of greatest likelihood, each round predicted at its own weights, clipped as it
   was, `classes` where labels are told but for the class, and `whole`: every pixel of theirs by its
   own column (`columns`), with masks that a unit's whole row speaks for (`masks`);
4. `answer`: images and labels with error bars, and a test of the whole (`rest`).

Behind one round this is the attacker who takes noise for what it is (`known_noise`), and rounding
to levels for noise that is another in each entry (`levels`).
"""
