"""group_norm_silu: silu(((u - mean)*rstd*weight + bias)*(1 + scale) + shift), u = x + add,
kernels/README.md section 12.

Three kernels: the moments of chunks of 64 positions, the statistics of groups from them in float64,
and the result. x and out are [batch, channels, positions] with any strides; with LAST channels are
contiguous, otherwise positions. Sums have the section's order (see `sum16`), so the statistics have
the same bits as on every other backend.
"""

import triton
import triton.language as tl

from .elementary import EXP_HIGH, EXP_LOW, divided, exponent, exponential, power

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
def place(channel_stride, position_stride, p, c, LAST: tl.constexpr):
    """Offsets [P, C] in a sample of positions p [P, 1] and channels c [1, C]."""
    if LAST:
        return p * position_stride + c
    else:
        return c * channel_stride + p


@triton.jit
def channelwise(pointer, stride, b, c, inside, ABSENT: tl.constexpr, COMPUTE: tl.constexpr):
    """[1, C] of a [batch, channels] view whose rows are `stride` apart."""
    if pointer is None:
        return tl.full(c.shape, ABSENT, COMPUTE)
    else:
        return tl.load(pointer + b * stride + c, mask=inside, other=ABSENT).to(COMPUTE)


@triton.jit
def halves(parts, N: tl.constexpr):
    """The N parts of a tuple, folded by halves."""
    if N == 1:
        return parts[0]
    else:
        sums = ()
        for i in tl.static_range(N // 2):
            sums = sums + (parts[i] + parts[i + N // 2],)  # type: ignore[assignment]
        return halves(sums, N // 2)


@triton.jit
def sum16_of(terms, S: tl.constexpr):
    """sum16 of a tuple of S terms, which are 0 where they are missing."""
    parts = ()
    for j in tl.static_range(SIDE):
        part = terms[j]
        for k in tl.static_range(1, S // SIDE):
            part = part + terms[j + SIDE * k]
        parts = parts + (part,)  # type: ignore[assignment]
    return halves(parts, SIDE)


@triton.jit
def moments_of_channels(x, plus, channel, left, x_position, S: tl.constexpr, COMPUTE: tl.constexpr):
    """Mean and sum of squared distances to it [E], of `left` <= S positions of E channels.

    The channels are side by side, and a thread has whole ones, so that nothing is exchanged and
    every load of a warp is dense.
    """
    u = ()
    at = x + channel
    for k in tl.static_range(S):
        row = tl.load(at, mask=k < left, other=0.0).to(COMPUTE)
        if plus is not None:
            row = tl.where(k < left, row + plus, 0.0)
        u = u + (row,)  # type: ignore[assignment]
        at += x_position
    mean = divided(sum16_of(u, S), (channel * 0 + left).to(COMPUTE))
    squares = ()
    for k in tl.static_range(S):
        d = u[k] - mean
        squares = squares + (tl.where(k < left, d * d, 0.0),)  # type: ignore[assignment]
    return mean, sum16_of(squares, S)


@triton.jit
def tile16(at, plus, j, left, COMPUTE: tl.constexpr):
    """u at 16 positions, and which of them are among the `left` ones."""
    inside = j < left
    u = tl.load(at, mask=inside, other=0.0).to(COMPUTE)
    if plus is not None:
        u = u + plus
    return u, inside


@triton.jit
def moments_of_positions(x, plus, channel, left, S: tl.constexpr, COMPUTE: tl.constexpr):
    """Mean and sum of squared distances to it [1, E], of `left` <= S (64) positions side by side.

    `channel` [1, E] is where a channel's positions begin.
    """
    tl.static_assert(S == 4 * SIDE)
    j = tl.arange(0, SIDE)[:, None]
    at = x + channel + j
    u0, i0 = tile16(at, plus, j, left, COMPUTE)
    u1, i1 = tile16(at + SIDE, plus, j + SIDE, left, COMPUTE)
    u2, i2 = tile16(at + 2 * SIDE, plus, j + 2 * SIDE, left, COMPUTE)
    u3, i3 = tile16(at + 3 * SIDE, plus, j + 3 * SIDE, left, COMPUTE)
    total = ((tl.where(i0, u0, 0.0) + tl.where(i1, u1, 0.0)) + tl.where(i2, u2, 0.0)) + tl.where(
        i3, u3, 0.0
    )
    mean = sum16(total, SIDE, channel.shape[1])
    mean = divided(mean, (tl.zeros(mean.shape, tl.int32) + left).to(COMPUTE))
    d0, d1, d2, d3 = u0 - mean, u1 - mean, u2 - mean, u3 - mean
    total = (
        (tl.where(i0, d0 * d0, 0.0) + tl.where(i1, d1 * d1, 0.0)) + tl.where(i2, d2 * d2, 0.0)
    ) + tl.where(i3, d3 * d3, 0.0)
    return mean, sum16(total, SIDE, channel.shape[1])


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
    c = (tl.program_id(0) % tiles) * E + tl.arange(0, E)
    chunk = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    first = chunk * S
    chunks = (positions + POSITIONS - 1) // POSITIONS
    left = tl.minimum(positions - first, S).to(tl.int32)
    if not LAST:
        c = c[None, :]
    inner = tl.minimum(c, channels - 1)  # threads after the last channel repeat it
    plus = None
    if add is not None:
        plus = channelwise(add, add_stride, b, inner, None, None, COMPUTE)
    if LAST:
        mean, squares = moments_of_channels(
            x + (b * x_sample + first * x_position), plus, inner, left, x_position, S, COMPUTE
        )
    else:
        channel = inner.to(tl.int64) * x_channel
        mean, squares = moments_of_positions(
            x + (b * x_sample + first), plus, channel, left, S, COMPUTE
        )
    to = workspace + (b * chunks + chunk) * channels + c
    live = (c < channels) & (chunk < chunks)
    tl.store(to, mean, mask=live)
    tl.store(to + batch.to(tl.int64) * chunks * channels, squares, mask=live)


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
    if z.dtype == tl.float64:
        return divided(z, 1.0 + exponential(z * -1.0))
    else:
        # the argument is held where 2^k is normal: there, as beyond, e^-z is less than half a
        # unit in the last place of 1
        t, r, q = exponent(tl.where(z > -EXP_LOW, EXP_LOW, z * -1.0))
        return tl.where(z < -EXP_HIGH, 0.0, divided(z, 1.0 + power(t, r, q)))


@triton.jit(do_not_specialize=["batch", "each"])
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
    each,
    S: tl.constexpr,
    E: tl.constexpr,
    LAST: tl.constexpr,
    SILU: tl.constexpr,
    FAST: tl.constexpr,
):
    """`each` tiles of S positions, one after the other, of E channels of one sample."""
    COMPUTE: tl.constexpr = statistics.dtype.element_ty
    tiles = (channels + E - 1) // E
    b = (tl.program_id(0) // tiles).to(tl.int64)
    c = (tl.program_id(0) % tiles) * E + tl.arange(0, E)[None, :]
    live = c < channels
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
    if add is not None:
        plus = channelwise(add, add_stride, b, c, live, 0.0, COMPUTE)
    p = tl.arange(0, S)[:, None]
    first = tl.program_id(1).to(tl.int64) * each * S
    end = tl.minimum(first + each * S, positions)
    wide_c, wide_p = c.to(tl.int64), p.to(tl.int64)
    come = place(x_channel, x_position, wide_p, wide_c, LAST)
    go = place(out_channel, out_position, wide_p, wide_c, LAST)
    x += b * x_sample
    out += b * out_sample
    while first < end:
        inside = live & (p < (end - first).to(tl.int32))
        u = tl.load(x + first * x_position + come, mask=inside, other=0.0).to(COMPUTE)
        if add is not None:
            u = u + plus
        z = (u - mean) * gain + offset
        y = silu_of(z) if SILU else z
        tl.store(out + first * out_position + go, y.to(out.dtype.element_ty), mask=inside)
        first += S
