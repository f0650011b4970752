"""All tolerances of the tests, each with its reason.

A test that needs another one adds it here, with the reason.
"""

import math

# One rounding of the stored type, relative to the value, is half of this; doubled for the last
# product.
ROUNDING = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}

# Sampler against closed forms (relative): a float64 run of n steps keeps 1e-12; in float32 each
# step adds a rounding of about 6e-8, growing like a random walk: 1e-6 up to 50 steps, 1e-5 at
# 1,000.
CLOSED_FORM = {("float64", 10): 1e-12, ("float64", 50): 1e-12, ("float64", 1000): 1e-12}
CLOSED_FORM |= {("float32", 10): 1e-6, ("float32", 50): 1e-6, ("float32", 1000): 1e-5}

# Identities among conversions in float64 for alpha² in (1e-6, 1 - 1e-6): condition numbers up to
# 1e3 times 2^-52.
CONVERSION = 1e-12

# One step against diffusers, relative to the largest value and times the step's amplification (see
# test_diffusers): two float32 roundings; with diffusers' formulas in float64, sixteen of float64's
# (cumulated products and differences).
DIFFUSERS = 2 * 2.0**-23
DIFFUSERS_FLOAT64 = 16 * 2.0**-52

# `fast` noise against `exact`: float32 log, sin and cos of arguments up to 2 pi.
FAST_NOISE = 4e-6

# Exact normals against float64 Box-Muller of the same integers: a few float32 roundings of values
# up to 5.8.
NOISE_TRUTH = 2e-6


def moments(n: int) -> dict[str, float]:
    """Five standard errors of the sample moments of n standard normals."""
    return {
        "mean": 5 / math.sqrt(n),
        "variance": 5 * math.sqrt(2 / n),
        "skewness": 5 * math.sqrt(6 / n),
        "kurtosis": 5 * math.sqrt(24 / n),
        "correlation": 5 / math.sqrt(n),
    }


# The Triton kernels' sums and gradients against the float64 oracle of the same inputs, relative
# (gradients: to the largest of the sample). float32: elementary functions to 2e-7, and a distance
# x0 - mean that lost 6e-8 of x0 before it is divided by a scale of e^-5 and squared. float64: the
# same with 2^-52, and differences of the oracle in gradients.
TRITON_SUMS = {"float32": 2e-6, "float64": 1e-13}
TRITON_GRADIENTS = {"float32": 2e-5, "float64": 1e-11}
TRITON_BIN_GRADIENTS = {"float32": 2e-5, "float64": 2e-8}

# The CUDA kernels' sums and gradients against float64, relative to the largest value: a few dozen
# roundings of the compute type. Gradients of the NLL and of the bound also have the digits that
# autograd of the plain formula loses where a bin is narrow.
CUDA_SUMS = {"float32": 2e-6, "float64": 1e-12}
CUDA_BIN_GRADIENTS = {"float32": 2e-5, "float64": 1e-9}

# Sums over a sample against float64: terms of a few float32 roundings each, tens of partial sums;
# measured 8e-7.
SUM = {"float32": 3e-6, "float64": 2e-13}
# Gradients of those sums against the same op in float64, relative to 1 + size: as for
# TRITON_GRADIENTS; in 16 bits a rounding of the stored gradient.
SUM_GRADIENTS = ROUNDING | TRITON_GRADIENTS
# vlb_terms: the error of x0 - x̂0 counts in units of the step's deviation, down to 0.01 (measured
# 5e-6).
VLB_SUM = {"float32": 2e-5, "float64": 1e-12}

# step_log_prob against NumPy and against torch's Normal: a rounding of x_s - mean counts in units
# of the row's deviation. float32 is relative to the elements of a sample.
LOG_PROB = {"float64": 1e-12, "float32": 3e-6}

# Drop-ins against diffusers. Both in float64 with the same tables: the formula alone, over loops of
# up to 1,000 steps whose roundings grow with the steps' amplification. As they are, relative to the
# largest value: diffusers computes coefficients in float32 (differences of products lose digits),
# fastdiff in float64; by whether the class works on timesteps (exact).
DROP_IN_FLOAT64 = 1e-9
DROP_IN_STEP = {True: 1e-6, False: 1e-5}
# Steps of exponential integrators of order 3 and of interpolated eps: diffusers' weights are
# float32 differences of exponentials and logarithms, which cancel (measured: 3.6e-5).
DROP_IN_STEP_CANCELLED = 4e-5
# One float32 step of a drop-in against its peer's formula in float64, relative to the step's
# largest value: ten roundings, and the peer's own error where a step divides what it rounded.
# "levels": consistency models compare a float32 level with a number, float64 in the reference.
DROP_IN_ROUNDING = {"step": 10 * 2.0**-24, "peer": 1.0, "levels": 2.5e-6}
DROP_IN_LOOP = {"low": 2e-5, "high": 2e-4}

# Loops against k-diffusion, relative to the largest value: in float64 up to 50 steps of some
# roundings each, the peer's differences of logarithms among them; in float32 the peer's sigmas and
# coefficients are float32 too.
K_DIFFUSION = {"float64": 1e-9, "float32": 2e-5}
# All that callbacks see while they write into the state, with half-precision callers against the
# peer in float64: the network's inputs, its noise and the written values are rounded in each of six
# steps; adaptive float32 steps multiply a difference that their error control sees.
K_DIFFUSION |= {
    "callbacks in float64": 1e-9,
    "callbacks in float32": 1e-4,
    "callbacks in float16": 1e-2,
    "callbacks in bfloat16": 5e-2,
}
# Pipelines of six steps with random networks, which raise a step's roundings (guidance of 7.5 on
# differences of outputs).
DROP_IN_PIPELINE = 1e-4

# Information measures in float64: sums of a dozen terms of some roundings each, relative or, near
# zero, absolute.
INFORMATION = 1e-14

# Bounds on log p(x) of linear-Gaussian models in float64: sums of tens of terms, a few solves of
# small systems of condition numbers up to 1e2.
EVIDENCE = 1e-12

# The bound's closed forms in float64: sums of up to 1,000 terms with weights SNR_{t-1} - SNR_t of
# up to 1e4, relative.
BOUND = 1e-10

# A numbered line of docs/theory in float64, relative to its largest value: sums of up to 2,001
# terms of some roundings each. Limits: sums of up to 65,536 terms, extrapolated, and an integrated
# flow.
DERIVATION = 1e-12
DERIVATION_LIMIT = 1e-10

# A float32 convolution by Winograd's algorithm against float64, relative to the output's deviation:
# roundings of sums over channels grow with their square root, and the transforms double them
# (measured: 2e-5 at 512 channels).
WINOGRAD = 4e-5
# A whole network computed in another order, relative to the largest output: some twenty layers of
# such errors, which norms bring back to size (measured: 1e-5 in the tests' networks; 2e-5 for the
# CIFAR-10 U-Net of 35.7 million parameters).
ACCELERATED = 5e-5

# group_norm_silu against float64, relative to the largest value: a mean and a deviation of sums of
# some roundings each, three products, an exponential and a quotient (measured 4e-7 and 1e-15).
# Gradients relative to the largest of each: two more means over a group, in the compute type, of
# terms that cancel; bfloat16: its incoming gradient is rounded too.
GROUP_NORM = {"float32": 2e-6, "float64": 1e-14}
GROUP_NORM_GRADIENTS = {"float32": 1e-5, "bfloat16": 2e-2}

# A door with a network of another dtype against the same network in float32, relative to the
# largest value: each of at most a dozen calls rounds its input and its output once, and of such a
# rounding less than its size reaches the result.
DOORS = {"fp64": 2 * ROUNDING["float32"]}
DOORS |= {"fp16": 2 * ROUNDING["float16"], "bf16": 2 * ROUNDING["bfloat16"]}
