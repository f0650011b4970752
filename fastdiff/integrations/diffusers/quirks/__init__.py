"""Formulas of diffusers that deviate from the papers; each names its quirk and the reason.

A formula that does not deviate is used from `fastdiff.solvers`, which these build on.
"""
