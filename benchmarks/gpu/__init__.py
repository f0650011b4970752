"""What `make gpu-report` measures before the suite, piece by piece: ceilings, kernels, loops,
networks.
"""
