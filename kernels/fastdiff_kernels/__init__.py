"""Triton kernels of fastdiff's fused ops: one file an op, the formulas in kernels/README.md, no
policy.

Use `fastdiff_kernels.launch`. Importing it loads no triton: that happens at the first launch, so
the package can be imported (and its absence explained) where triton is not installed.
"""
