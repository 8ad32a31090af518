"""The logit from which on a filter keeps tokens, found digit by digit on an image of floats that keeps their order."""

import triton
import triton.language as tl

DIGIT_BITS = tl.constexpr(2)
STAGES = tl.constexpr(4)  # of the loops over a row, which has to be loaded ahead
SIGN = tl.constexpr(0x80000000)
WORD = tl.constexpr(0xFFFFFFFF)


@triton.jit
def order_key(values):
    """uint32 that compare as the floats do."""
    bits = values.to(tl.uint32, bitcast=True)
    return tl.where(bits >= SIGN, bits ^ WORD, bits | SIGN)


@triton.jit
def value_of_key(key):
    """The float of an `order_key`."""
    return tl.where(key >= SIGN, key ^ SIGN, key ^ WORD).to(tl.float32, bitcast=True)


@triton.jit
def load_values(row_start, begin, size, mask, BLOCK: tl.constexpr):
    """Logits [begin, begin + BLOCK) as float32, -inf where there are none. (ROWS, BLOCK)"""
    ids = begin + tl.arange(0, BLOCK)
    inside = mask[:, None] & (ids < size)[None, :]
    return tl.load(row_start[:, None] + ids[None, :], mask=inside, other=float("-inf")).to(tl.float32)


@triton.jit
def masses_of(values, kept_from, top, inv_t):
    """exp of the scaled logits relative to `top` where at least `kept_from`, else 0. (ROWS, BLOCK)"""
    masses = tl.exp((values - top[:, None]) * inv_t[:, None])
    return tl.where(values >= kept_from[:, None], masses, 0.0)


@triton.jit
def mass_from(row_start, size, mask, kept_from, top, inv_t, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The mass, relative to `top`, of the logits that are at least `kept_from`. (ROWS,) float64"""
    lanes = tl.zeros((ROWS, BLOCK), tl.float32)
    for begin in tl.range(0, size, BLOCK, num_stages=STAGES):
        lanes += masses_of(load_values(row_start, begin, size, mask, BLOCK), kept_from, top, inv_t)
    return total_of(lanes)


@triton.jit
def total_of(lanes):
    """(ROWS, BLOCK) summed in float64. (ROWS,)"""
    return tl.sum(lanes.to(tl.float64), axis=1)


@triton.jit
def next_digit(prefix, one, two, three, goal, shift):
    """`prefix` with the greatest digit at `shift` from which on the total, here given for each, reaches the goal."""
    digit = (one >= goal).to(tl.uint32) + (two >= goal).to(tl.uint32) + (three >= goal).to(tl.uint32)
    return prefix | (digit << shift)


@triton.jit
def threshold_of_prefix(prefix, LOW_BIT: tl.constexpr):
    """The value of a key whose bits below LOW_BIT are not decided: narrower floats have zeros there."""
    return value_of_key(tl.where(prefix >= SIGN, prefix, prefix | ((1 << LOW_BIT) - 1)))


@triton.jit
def kept_by(digit, values, weights, prefix, shift):
    """The weights of the values that this next digit of `prefix` keeps, 0 for the others. (ROWS, BLOCK)"""
    pivot = prefix | (tl.full(prefix.shape, digit, tl.uint32) << shift)
    return tl.where(order_key(values) >= pivot[:, None], weights, 0.0)


@triton.jit
def select_count(row_start, size, mask, k, ROWS: tl.constexpr, BLOCK: tl.constexpr, LOW_BIT: tl.constexpr):
    """The k-th largest logit of each row. (ROWS,) float32"""
    prefix = tl.zeros((ROWS,), tl.uint32)
    for step in range((32 - LOW_BIT) // DIGIT_BITS):
        shift = (32 - DIGIT_BITS) - DIGIT_BITS * step
        one = tl.zeros((ROWS, BLOCK), tl.float32)
        two = tl.zeros((ROWS, BLOCK), tl.float32)
        three = tl.zeros((ROWS, BLOCK), tl.float32)
        for begin in tl.range(0, size, BLOCK, num_stages=STAGES):
            values = load_values(row_start, begin, size, mask, BLOCK)
            counts = tl.where(begin + tl.arange(0, BLOCK) < size, 1.0, 0.0)[None, :]
            one += kept_by(1, values, counts, prefix, shift)
            two += kept_by(2, values, counts, prefix, shift)
            three += kept_by(3, values, counts, prefix, shift)
        totals = tl.sum(one, axis=1), tl.sum(two, axis=1), tl.sum(three, axis=1)
        prefix = next_digit(prefix, totals[0], totals[1], totals[2], k.to(tl.float32), shift)
    return threshold_of_prefix(prefix, LOW_BIT)


@triton.jit
def select_mass(
    row_start,
    size,
    mask,
    fraction,
    kept_from,
    top,
    inv_t,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    LOW_BIT: tl.constexpr,
):
    """The largest logit from which on there is `fraction` of the mass that `kept_from` leaves. (ROWS,) float32"""
    prefix = tl.zeros((ROWS,), tl.uint32)
    goal = fraction.to(tl.float64) * mass_from(row_start, size, mask, kept_from, top, inv_t, ROWS, BLOCK)
    for step in range((32 - LOW_BIT) // DIGIT_BITS):
        shift = (32 - DIGIT_BITS) - DIGIT_BITS * step
        one = tl.zeros((ROWS, BLOCK), tl.float32)
        two = tl.zeros((ROWS, BLOCK), tl.float32)
        three = tl.zeros((ROWS, BLOCK), tl.float32)
        for begin in tl.range(0, size, BLOCK, num_stages=STAGES):
            values = load_values(row_start, begin, size, mask, BLOCK)
            masses = masses_of(values, kept_from, top, inv_t)
            one += kept_by(1, values, masses, prefix, shift)
            two += kept_by(2, values, masses, prefix, shift)
            three += kept_by(3, values, masses, prefix, shift)
        totals = total_of(one), total_of(two), total_of(three)
        prefix = next_digit(prefix, totals[0], totals[1], totals[2], goal, shift)
    return threshold_of_prefix(prefix, LOW_BIT)


@triton.jit
def min_p_threshold(top, temperature, min_p):
    """The logit at which the probability is min_p of the largest, rounded to float32."""
    drop = temperature.to(tl.float64) * tl.log(min_p.to(tl.float64))
    return (top.to(tl.float64) + drop).to(tl.float32)
