"""The Triton kernels of fastdiff's fused ops: one file per op, formulas in kernels/README.md.

They validate and choose nothing. Use `fastdiff_kernels.launch`. Importing this package does not
import triton, which happens at the first launch, so it can be imported without triton installed.
"""
