"""g, λ_CE and λ_SC over a training run, and in a model ten times larger.

The small video network of the examples, and the same with √10 times its widths, are trained on the
drawn clips with SAM and the heterogeneity-aware loss, whose balance follows the gradient norm g.
Settings of the balance:

as published  λ_CE = α g/(g+1), λ_SC = β/(g+1)
EMA           g is a moving average that keeps 0.9 of its past
√P            g counts in units of √P, P the number of parameters (unit=√P)
√(P/P₀)       the unit that carries a balance over from a model of P₀ parameters, here the small one

Every run has the same seed, clips and batches. Results go to scaling.json, after which scaling.md
and scaling.png are drawn from that file.
"""
