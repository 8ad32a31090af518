"""The logit from which on a filter keeps tokens, found digit by digit on an image of floats that keeps their order."""

import triton
import triton.language as tl

DIGIT_BITS = tl.constexpr(2)
DIGITS = tl.constexpr(4)
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
    for begin in range(0, size, BLOCK):
        lanes += masses_of(load_values(row_start, begin, size, mask, BLOCK), kept_from, top, inv_t)
    return tl.sum(lanes.to(tl.float64), axis=1)


@triton.jit
def next_digit(prefix, totals, goal, shift):
    """`prefix` with the greatest digit at `shift` from which on the total reaches the goal."""
    passes = tl.sum((totals >= goal[:, None]).to(tl.int32), axis=1)
    return prefix | (tl.maximum(passes - 1, 0).to(tl.uint32) << shift)


@triton.jit
def threshold_of_prefix(prefix, LOW_BIT: tl.constexpr):
    """The value of a key whose bits below LOW_BIT are not decided: narrower floats have zeros there."""
    return value_of_key(tl.where(prefix >= SIGN, prefix, prefix | ((1 << LOW_BIT) - 1)))


@triton.jit
def add_weights(totals, values, weights, prefix, shift):
    """Add to `totals` the weights of the values that each next digit of `prefix` keeps. (ROWS, BLOCK, DIGITS)"""
    pivots = prefix[:, None] | (tl.arange(0, DIGITS).to(tl.uint32) << shift)[None, :]
    return totals + tl.where(order_key(values)[:, :, None] >= pivots[:, None, :], weights[:, :, None], 0.0)


@triton.jit
def select_count(row_start, size, mask, k, ROWS: tl.constexpr, BLOCK: tl.constexpr, LOW_BIT: tl.constexpr):
    """The k-th largest logit of each row. (ROWS,) float32"""
    prefix = tl.zeros((ROWS,), tl.uint32)
    for step in range((32 - LOW_BIT) // DIGIT_BITS):
        shift = (32 - DIGIT_BITS) - DIGIT_BITS * step
        counts = tl.zeros((ROWS, BLOCK, DIGITS), tl.float32)
        for begin in range(0, size, BLOCK):
            values = load_values(row_start, begin, size, mask, BLOCK)
            one = tl.where(begin + tl.arange(0, BLOCK) < size, 1.0, 0.0)
            weights = tl.broadcast_to(one[None, :], (ROWS, BLOCK))
            counts = add_weights(counts, values, weights, prefix, shift)
        prefix = next_digit(prefix, tl.sum(counts, axis=1), k.to(tl.float32), shift)
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
    goal = tl.zeros((ROWS,), tl.float64)
    for step in range((32 - LOW_BIT) // DIGIT_BITS):
        shift = (32 - DIGIT_BITS) - DIGIT_BITS * step
        lanes = tl.zeros((ROWS, BLOCK, DIGITS), tl.float32)
        for begin in range(0, size, BLOCK):
            values = load_values(row_start, begin, size, mask, BLOCK)
            lanes = add_weights(lanes, values, masses_of(values, kept_from, top, inv_t), prefix, shift)
        totals = tl.sum(lanes.to(tl.float64), axis=1)
        # The first digit 0 keeps all.
        goal = tl.where(step == 0, fraction.to(tl.float64) * tl.max(totals, axis=1), goal)
        prefix = next_digit(prefix, totals, goal, shift)
    return threshold_of_prefix(prefix, LOW_BIT)


@triton.jit
def min_p_threshold(top, temperature, min_p):
    """The logit at which the probability is min_p of the largest, rounded to float32."""
    drop = temperature.to(tl.float64) * tl.log(min_p.to(tl.float64))
    return (top.to(tl.float64) + drop).to(tl.float32)
