"""Linear combinations with coefficients from a plan's table, kernels/README.md section 4.

    the sum of c_i * v_i over operands in column order, starting from +0, each product and sum
    rounded; an operand with c_i = 0 is not read

USES is the table's column mask: a column that is zero in every row costs nothing. For a column that
only some rows use, samples with a zero coefficient ignore it, and its operand is loaded only where
a coefficient is not zero.
"""

import triton
import triton.language as tl

# the operands of a combination, in column order; the outputs' columns begin at 16 (next x), 24, 32,
# 40, 48 (slots)
X, X0, OUT, S1, Z = (
    tl.constexpr(0),
    tl.constexpr(1),
    tl.constexpr(2),
    tl.constexpr(3),
    tl.constexpr(7),
)
FIRST = tl.constexpr(16)
OPERANDS = tl.constexpr(8)
X0_X, X0_OUT = tl.constexpr(6), tl.constexpr(7)


@triton.constexpr_function
def used(mask, column):
    """Whether any row of the table has a non-zero entry in the column."""
    return mask >> column & 1 == 1


@triton.constexpr_function
def operand_used(mask, operand):
    """Whether any output of any row reads the operand."""
    return any(mask >> 16 + 8 * output + operand & 1 for output in range(5))


@triton.constexpr_function
def output_used(mask, output):
    """Whether any row defines the output."""
    return mask >> 16 + 8 * output & 255 != 0


@triton.jit
def entry(rows, COLUMN: tl.constexpr, valid, COMPUTE: tl.constexpr):
    """The table's entry of each sample's row [S, 1], rounded to the compute type."""
    return tl.load(rows + COLUMN, mask=valid, other=0.0).to(COMPUTE)


@triton.jit
def entries(
    rows,
    COLUMN: tl.constexpr,
    COUNT: tl.constexpr,
    valid,
    USES: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The entries of COUNT columns, as a tuple, which are read once for all of a sample's chunks.

    Columns that no row uses have 0, and are not read.
    """
    c = ()
    for i in tl.static_range(COUNT):
        if used(USES, COLUMN + i):
            c = c + (entry(rows, COLUMN + i, valid, COMPUTE),)  # type: ignore[assignment]
        else:
            c = c + (0.0,)  # type: ignore[assignment]
    return c


@triton.jit
def coefficients(rows, output: tl.constexpr, valid, USES: tl.constexpr, COMPUTE: tl.constexpr):
    """The coefficients of an output by operand: 0 is the next x, 1 to 4 are the slots."""
    return entries(rows, FIRST + output * OPERANDS, OPERANDS, valid, USES, COMPUTE)


@triton.jit
def set_where(flag, c, COLUMN: tl.constexpr, USES: tl.constexpr):
    """flag, or True where the column's entry c is not zero."""
    if used(USES, COLUMN):
        flag = flag | (c != 0.0)
    return flag


@triton.jit
def nonzero(flag, rows, COLUMN: tl.constexpr, valid, USES: tl.constexpr, COMPUTE: tl.constexpr):
    """flag, or True where the sample's row has a non-zero entry in the column."""
    return set_where(flag, entries(rows, COLUMN, 1, valid, USES, COMPUTE)[0], COLUMN, USES)


@triton.jit
def reads(operand: tl.constexpr, outputs, valid, USES: tl.constexpr):
    """[S, 1]: whether each sample's row reads the operand in any of the five outputs."""
    flag = valid & False
    for output in tl.static_range(5):
        flag = set_where(flag, outputs[output][operand], FIRST + output * OPERANDS + operand, USES)
    return flag


@triton.jit
def writes(output: tl.constexpr, outputs, valid, USES: tl.constexpr):
    """[S, 1]: whether each sample's row defines the output."""
    flag = valid & False
    for operand in tl.static_range(OPERANDS):
        flag = set_where(flag, outputs[output][operand], FIRST + output * OPERANDS + operand, USES)
    return flag


@triton.jit
def term(total, c, value, COLUMN: tl.constexpr, USES: tl.constexpr):
    """total + c * value, where the column's entry c is not zero."""
    if used(USES, COLUMN):
        total = tl.where(c != 0.0, total + c * value, total)
    return total


@triton.jit
def combination(
    zero,
    output: tl.constexpr,
    outputs,
    operands,
    USES: tl.constexpr,
    COUNT: tl.constexpr = OPERANDS,
):
    """The combination of an output, of operands with the coefficients outputs[output].

    COUNT: it has the first of them only. An operand that no column uses is ignored.
    """
    total = zero
    for operand in tl.static_range(COUNT):
        total = term(
            total,
            outputs[output][operand],
            operands[operand],
            FIRST + output * OPERANDS + operand,
            USES,
        )
    return total
