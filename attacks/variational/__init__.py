"""A batch behind a variational bottleneck, which draws in front of the last layer.

PRECODE (D. Scheliga, P. Mäder, M. Seeland, WACV 2022, arXiv 2108.04725) sends the last features a
through an encoder, `(μ, log σ²) = E a + c`, draws `z = μ + σ ⊙ n`, and decodes z. Its authors hold
that nobody inverts a gradient through a draw that isn't told. [ours] Nobody has to:

1. `examples`: the layers up to the encoder never saw the draw. Their gradients show the examples'
   inputs as those of any network do, with the encoder, whose bias gives inputs their scale, in the
   place of the last layer; and the encoder's own gradient then shows, for each example, the loss's
   derivatives by μ and by log σ².
2. `draws`: with M the way back from the logits through the decoder, e = p − y, and β the weight of
   the divergence,

       ∂L/∂μ = M e + β μ,      ∂L/∂log σ² = ½ (z − μ) ⊙ M e + ½ β (σ² − 1),

   of which the first gives e, and the second the draw; and with the draw p, and y = p − e.
"""
