"""fastdiff inside other libraries: their interfaces over fastdiff's formulas and kernels."""
