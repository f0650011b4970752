"""Interfaces of other libraries over fastdiff's formulas and kernels."""
