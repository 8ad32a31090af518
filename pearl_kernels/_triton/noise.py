"""The noise of `pearl_kernels.philox` in Triton: the same words, bit for bit.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import triton
import triton.language as tl

ROUNDS = tl.constexpr(10)
MULTIPLIER_0 = tl.constexpr(0xD2511F53)
MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
KEY_STEP_0 = tl.constexpr(0x9E3779B9)
KEY_STEP_1 = tl.constexpr(0xBB67AE85)
WORD = tl.constexpr(0xFFFFFFFF)
LANES = tl.constexpr(4)  # vocab ids served by one counter

SAMPLE = tl.constexpr(0)
ACCEPT = tl.constexpr(1)
RESIDUAL = tl.constexpr(2)


@triton.jit
def philox_round(c0, c1, c2, c3, k0, k1):
    """The next counter and key. Keys are kept in 64 bits, where adding to them cannot overflow."""
    product0, product1 = c0.to(tl.uint64) * MULTIPLIER_0, c2.to(tl.uint64) * MULTIPLIER_1
    c0, c2 = (
        (product1 >> 32).to(tl.uint32) ^ c1 ^ k0.to(tl.uint32),
        (product0 >> 32).to(tl.uint32) ^ c3 ^ k1.to(tl.uint32),
    )
    return c0, product1.to(tl.uint32), c2, product0.to(tl.uint32), (k0 + KEY_STEP_0) & WORD, (k1 + KEY_STEP_1) & WORD


@triton.jit
def philox_words(block, position, purpose, epoch, seed, UNROLLED: tl.constexpr):
    """Four uint32 words for each counter. Integers of any width, of which the low 32 bits count.

    UNROLLED: they may be broadcast together, and what the first rounds have in common is done once, but the compiler
    takes seconds more; else all are of one shape
    """
    c0, c1 = block.to(tl.uint32), position.to(tl.uint32)
    c2, c3 = purpose.to(tl.uint32), epoch.to(tl.uint32)
    k0, k1 = seed.to(tl.uint64) & WORD, seed.to(tl.uint64) >> 32
    if UNROLLED:
        for _ in tl.static_range(ROUNDS):
            c0, c1, c2, c3, k0, k1 = philox_round(c0, c1, c2, c3, k0, k1)
    else:
        for _ in range(ROUNDS):
            c0, c1, c2, c3, k0, k1 = philox_round(c0, c1, c2, c3, k0, k1)
    return c0, c1, c2, c3


@triton.jit
def to_unit(word):
    """A float64 in (0, 1) that is exact in float32: never 0, never 1."""
    return ((word >> 9).to(tl.float64) + 0.5) * 1.1920928955078125e-07  # 2**-23


@triton.jit
def uniform(position, purpose, epoch, seed):
    """The scalar draw, which is that of vocab id 0. Of any shape that broadcast together."""
    zero = tl.zeros_like(position)
    first, _, _, _ = philox_words(zero, position, zero + purpose, zero + epoch, zero + seed, False)
    return to_unit(first)


@triton.jit
def noise_words(begin, position, purpose, epoch, seed, BLOCK: tl.constexpr, UNROLLED: tl.constexpr):
    """The words of vocab ids [begin, begin + BLOCK), begin a multiple of 4. (ROWS,) -> (ROWS, BLOCK) uint32"""
    block = begin // LANES + tl.arange(0, BLOCK // LANES)
    zero = tl.zeros((1, 1), tl.int64)
    if not UNROLLED:
        zero += tl.zeros((seed.shape[0], BLOCK // LANES), tl.int64)
    w0, w1, w2, w3 = philox_words(
        zero + block[None, :], zero + position[:, None], zero + purpose[:, None], zero + epoch[:, None],
        zero + seed[:, None], UNROLLED,
    )  # fmt: skip
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def word_of(ids, position, purpose, epoch, seed):
    """The word of one vocab id each. (ROWS,)"""
    w0, w1, w2, w3 = philox_words(ids // LANES, position, purpose, epoch, seed, False)
    lane = ids % LANES
    return tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))


@triton.jit
def gumbel(words):
    """-log(-log(u)) in float64."""
    return -tl.log(-tl.log(to_unit(words)))


@triton.jit
def rough_gumbel(words):
    """The same in float32, off by less than 3e-4 whatever the hardware's logarithm does near 1."""
    unit = ((words >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    rest = (((words ^ WORD) >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 1 - u, exactly
    series = rest * (1.0 + rest * (0.5 + rest * 0.33333334))  # of -log(1 - rest)
    return -tl.log(tl.where(rest < 0.0625, series, -tl.log(unit)))
