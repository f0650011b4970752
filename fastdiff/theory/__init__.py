"""The theory of diffusion models as working systems.

It follows Luo, "Understanding Diffusion Models: A Unified Perspective" (arXiv 2208.11970).

information/   entropies and divergences, estimated with their standard errors
variational/   ELBO, VAE, hierarchical VAE, variational diffusion and its learned schedule
score/         score matching, SDEs, Langevin sampling, the probability-flow ODE
likelihood/    bounds on -ln p(x), term by term, and exact likelihoods along the probability flow
systems/       trainable denoisers, classifiers and super-resolution
evaluation/    the measurements of `fastdiff eval`
conditions.py  labels and other conditions of examples, and their dropout
system.py      what a trainable system must provide
registry.py    the table of trainable systems by name

tensors.py and dequantization.py serve several of these.
"""
