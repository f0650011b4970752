"""The version of the noise contract (`fastdiff.rng`), for those who only compare it: reading a spec needs no torch."""

CONTRACT_VERSION = 1
