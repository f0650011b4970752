"""The versions of the package and of the noise contract. Reading them imports nothing else."""

__version__ = "0.1.0"
CONTRACT_VERSION = 1
"""The version of the noise contract (`fastdiff.rng`)."""
