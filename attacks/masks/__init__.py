"""Every example of a batch out of a hidden layer's gradient, however few the classes.

The last layer's gradient has rank K − 1 at most. That of a hidden layer l has no such limit:

    ∂L/∂W_l = (1/B) Σ_b δ_b a_bᵀ,      δ_b = m_b ⊙ (W_{l+1}ᵀ e_b),

with `m_b` in {low, 1} the slopes of a ReLU (low = 0) or leaky ReLU behind it, and `e_b` in the
column space of ∂L/∂W_{l+1}: for the last layer at most the K − 1 dimensions of sum 0. Let the
columns of U span that of ∂L/∂W_l, and those of T the space of the `W_{l+1}ᵀ e_b`. Then every
example is a pair (q, t), `δ_b = U q`, of which **each unit i is two-valued**:

    u_i·q ∈ {low · T_i·t,  T_i·t}.

That takes no bias, no non-negative input, no sparsity and no logits of a certain size. Dropout
behind a ReLU is a mask, too. In the steps of `attacks.batch`, where each example is an extreme ray:

1. `equation`: U and T of a layer, and the units that are `always_on`;
2. `lifted` and `annealed` propose pairs, in closed form or from random starts;
3. `polish` sharpens a pair by its own mask, and says how well it fits;
4. `find` takes turns, and has what is found leave starts for what isn't;
   or `rays` finds examples by the other factor, `a_b`, and a mask confirms each;
5. `examples` and `recover`: all pairs give the layer's inputs, these the last layer's, and one
   scalar problem is left for each example; of few classes, one for all (`common_label`).
"""
