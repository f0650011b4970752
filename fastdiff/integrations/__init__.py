"""Interfaces of other libraries (diffusers, k-diffusion, EDM) over fastdiff's formulas and kernels."""
