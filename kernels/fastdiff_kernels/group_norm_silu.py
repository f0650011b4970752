"""group_norm_silu: silu(((u - mean)*rstd*weight + bias)*(1 + scale) + shift), u = x + add,
kernels/README.md section 12.

Three kernels: the moments of chunks of 64 positions, the statistics of groups from them in float64,
and the result. x and out are [batch, channels, positions] with any strides; with LAST channels are
contiguous, otherwise positions. Sums have the section's order (see `sum16`), so the statistics have
the same bits as on every other backend.
"""

import triton
import triton.language as tl

from .elementary import EXP_HIGH, divided, exponential

POSITIONS = tl.constexpr(64)
SIDE = tl.constexpr(16)


@triton.jit
def sum16(total, N: tl.constexpr, C: tl.constexpr):
    """[N, C] to [1, C]: folded by halves. The order of tl.sum over two elements is unique."""
    if N == 1:
        return total
    else:
        return sum16(tl.sum(total.reshape(2, N // 2, C), 0), N // 2, C)


@triton.jit
def place(sample_stride, channel_stride, position_stride, b, p, c, LAST: tl.constexpr):
    """Offsets [P, C] of positions p [P, 1] and channels c [1, C]."""
    if LAST:
        return b * sample_stride + p * position_stride + c
    else:
        return b * sample_stride + c * channel_stride + p


@triton.jit
def channelwise(pointer, stride, b, c, inside, ABSENT: tl.constexpr, COMPUTE: tl.constexpr):
    """[1, C] of a [batch, channels] view whose rows are `stride` apart."""
    if pointer is None:
        return tl.full(c.shape, ABSENT, COMPUTE)
    else:
        return tl.load(pointer + b * stride + c, mask=inside, other=ABSENT).to(COMPUTE)


@triton.jit
def tile16(x, add, offset, plus, p, positions, live, COMPUTE: tl.constexpr):
    """u of 16 rows, and its mask."""
    inside = (p < positions) & live
    u = tl.load(x + offset, mask=inside, other=0.0).to(COMPUTE)
    if add is not None:
        u = u + plus
    return u, inside


@triton.jit(do_not_specialize=["batch"])
def group_norm_moments_kernel(
    workspace,
    x,
    add,
    x_sample,
    x_channel,
    x_position,
    add_stride,
    batch,
    channels,
    positions,
    S: tl.constexpr,
    E: tl.constexpr,
    LAST: tl.constexpr,
    FAST: tl.constexpr,
):
    """Mean and sum of squared distances to the mean, for E channels of a chunk of S (64) positions.

    They are stored as [2, batch, chunks, channels].
    """
    COMPUTE: tl.constexpr = workspace.dtype.element_ty
    tiles = (channels + E - 1) // E
    b = (tl.program_id(0) // tiles).to(tl.int64)
    c = (tl.program_id(0) % tiles) * E + tl.arange(0, E)[None, :]
    chunk = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    live = c < channels
    first = chunk * S
    p = first + tl.arange(0, SIDE)[:, None]
    plus = channelwise(add, add_stride, b, c, live, 0.0, COMPUTE)
    at = place(x_sample, x_channel, x_position, b, p, c.to(tl.int64), LAST)
    along = SIDE * x_position
    u0, i0 = tile16(x, add, at, plus, p, positions, live, COMPUTE)
    u1, i1 = tile16(x, add, at + along, plus, p + SIDE, positions, live, COMPUTE)
    u2, i2 = tile16(x, add, at + 2 * along, plus, p + 2 * SIDE, positions, live, COMPUTE)
    u3, i3 = tile16(x, add, at + 3 * along, plus, p + 3 * SIDE, positions, live, COMPUTE)
    total = ((tl.where(i0, u0, 0.0) + tl.where(i1, u1, 0.0)) + tl.where(i2, u2, 0.0)) + tl.where(
        i3, u3, 0.0
    )
    count = tl.minimum(positions - first, S)
    mean = divided(sum16(total, SIDE, E), (tl.zeros([1, E], tl.int64) + count).to(COMPUTE))
    d0, d1, d2, d3 = u0 - mean, u1 - mean, u2 - mean, u3 - mean
    total = (
        (tl.where(i0, d0 * d0, 0.0) + tl.where(i1, d1 * d1, 0.0)) + tl.where(i2, d2 * d2, 0.0)
    ) + tl.where(i3, d3 * d3, 0.0)
    chunks = (positions + POSITIONS - 1) // POSITIONS
    to = workspace + (b * chunks + chunk) * channels + c
    live = live & (chunk < chunks)
    tl.store(to, mean, mask=live)
    tl.store(to + batch * chunks * channels, sum16(total, SIDE, E), mask=live)


@triton.jit
def channel_moments(workspace, squares, b, c, live, channels, positions, E: tl.constexpr):
    """Mean and sum of squared distances [1, E] in float64 of channels c [1, E], by their chunks."""
    chunks = (positions + POSITIONS - 1) // POSITIONS
    base = workspace + b * chunks * channels + c
    first = tl.load(base, mask=live, other=0.0).to(tl.float64)
    distance = tl.zeros([SIDE, E], tl.float64)
    square = tl.zeros([SIDE, E], tl.float64)
    begin = tl.full([], 0, tl.int64)
    while begin < chunks:
        k = begin + tl.arange(0, SIDE)[:, None]
        inside = live & (k < chunks)
        at = (b * chunks + k) * channels + c
        mean = tl.load(workspace + at, mask=inside, other=0.0).to(tl.float64)
        of = tl.load(squares + at, mask=inside, other=0.0).to(tl.float64)
        d = mean - first
        weighted = tl.minimum(positions - k * POSITIONS, POSITIONS).to(tl.float64) * d
        distance = tl.where(inside, distance + weighted, distance)
        square = tl.where(inside, square + (of + weighted * d), square)
        begin += SIDE
    total = sum16(distance, SIDE, E)
    off = total / (tl.zeros([1, E], tl.int64) + positions).to(tl.float64)
    return first + off, sum16(square, SIDE, E) - off * total


@triton.jit(do_not_specialize=["batch"])
def group_norm_statistics_kernel(
    statistics,
    workspace,
    eps_lo,
    eps_hi,
    batch,
    channels,
    groups,
    positions,
    E: tl.constexpr,
    FAST: tl.constexpr,
):
    """mean and 1/deviation of one group, stored as [2, batch, groups].

    eps is passed as the two halves of its float64 bits.
    """
    chunks = (positions + POSITIONS - 1) // POSITIONS
    squares = workspace + batch.to(tl.int64) * chunks * channels
    width = channels // groups
    b = (tl.program_id(0) // groups).to(tl.int64)
    group = tl.program_id(0) % groups
    lane = tl.arange(0, SIDE)[None, :]
    n = (tl.zeros([1, SIDE], tl.int64) + positions).to(tl.float64)
    distance = tl.zeros([1, SIDE], tl.float64)
    square = tl.zeros([1, SIDE], tl.float64)
    pivot = tl.zeros([1, 1], tl.float64)
    begin = tl.full([], 0, tl.int32)
    while begin < width:
        live = begin + lane < width
        c = group * width + begin + lane
        mean, of = channel_moments(workspace, squares, b, c, live, channels, positions, SIDE)
        if begin == 0:
            pivot = tl.sum(tl.where(lane == 0, mean, 0.0), 1, keep_dims=True)
        d = mean - pivot
        weighted = n * d
        distance = tl.where(live, distance + weighted, distance)
        square = tl.where(live, square + (of + weighted * d), square)
        begin += SIDE
    count = (tl.zeros([1, 1], tl.int64) + width).to(tl.float64) * (
        tl.zeros([1, 1], tl.int64) + positions
    ).to(tl.float64)
    total = sum16(distance.reshape(SIDE, 1), SIDE, 1)
    off = total / count
    variance = (sum16(square.reshape(SIDE, 1), SIDE, 1) - off * total) / count
    bits = (tl.zeros([1, 1], tl.int64) + eps_hi) * 4294967296 + (
        (tl.zeros([1, 1], tl.int64) + eps_lo) & 0xFFFFFFFF
    )
    rstd = 1.0 / tl.sqrt(variance + bits.to(tl.float64, bitcast=True))
    to = statistics + tl.program_id(0).to(tl.int64) + tl.zeros([1, 1], tl.int64)
    tl.store(to, (pivot + off).to(statistics.dtype.element_ty))
    tl.store(to + batch.to(tl.int64) * groups, rstd.to(statistics.dtype.element_ty))


@triton.jit
def silu_of(z):
    """z/(1 + e^-z); 0 in float32 where e^-z is infinite."""
    y = divided(z, 1.0 + exponential(z * -1.0))
    if z.dtype == tl.float64:
        return y
    else:
        return tl.where(z < -EXP_HIGH, 0.0, y)


@triton.jit(do_not_specialize=["batch"])
def group_norm_silu_kernel(
    out,
    x,
    statistics,
    weight,
    bias,
    scale,
    shift,
    add,
    x_sample,
    x_channel,
    x_position,
    out_sample,
    out_channel,
    out_position,
    scale_stride,
    shift_stride,
    add_stride,
    batch,
    channels,
    groups,
    positions,
    S: tl.constexpr,
    E: tl.constexpr,
    LAST: tl.constexpr,
    SILU: tl.constexpr,
    FAST: tl.constexpr,
):
    """S positions by E channels of one sample."""
    COMPUTE: tl.constexpr = statistics.dtype.element_ty
    tiles = (channels + E - 1) // E
    b = (tl.program_id(0) // tiles).to(tl.int64)
    c = (tl.program_id(0) % tiles) * E + tl.arange(0, E)[None, :]
    live = c < channels
    first = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * S
    p = first + tl.arange(0, S)[:, None]
    inside = live & (p < positions)
    at = statistics + b * groups + c // (channels // groups)
    mean = tl.load(at, mask=live, other=0.0)
    gain = tl.load(at + batch.to(tl.int64) * groups, mask=live, other=0.0)
    offset = channelwise(bias, 0, b, c, live, 0.0, COMPUTE)
    if weight is not None:
        gain = gain * channelwise(weight, 0, b, c, live, 1.0, COMPUTE)
    if scale is not None:
        wide = 1.0 + channelwise(scale, scale_stride, b, c, live, 0.0, COMPUTE)
        gain = gain * wide
        offset = offset * wide
    if shift is not None:
        offset = offset + channelwise(shift, shift_stride, b, c, live, 0.0, COMPUTE)
    u = tl.load(
        x + place(x_sample, x_channel, x_position, b, p, c.to(tl.int64), LAST),
        mask=inside,
        other=0.0,
    )
    u = u.to(COMPUTE)
    if add is not None:
        u = u + channelwise(add, add_stride, b, c, live, 0.0, COMPUTE)
    z = (u - mean) * gain + offset
    y = silu_of(z) if SILU else z
    to = out + place(out_sample, out_channel, out_position, b, p, c.to(tl.int64), LAST)
    tl.store(to, y.to(out.dtype.element_ty), mask=inside)
