"""What becomes of a verdict: it is handed out, or committed to a DecodeState and cut at the end."""

import triton
import triton.language as tl

from pearl_kernels._triton.rows import DRAFT_INVALID

# The numbers of pearl_kernels.Finished.
RUNNING = tl.constexpr(0)
STOP = tl.constexpr(1)
LENGTH = tl.constexpr(2)
ERROR = tl.constexpr(3)


@triton.jit
def is_eos(token, eos_ids, eos_count, request, mask, EOS_BLOCK: tl.constexpr):
    """Whether each token is among its request's end-of-sequence ids, which are padded with -1. (REQUESTS, WIDTH)"""
    index = tl.arange(0, EOS_BLOCK)
    wanted = tl.max(mask.to(tl.int32), axis=1) > 0
    at = request[:, None] * eos_count + index[None, :]
    ids = tl.load(eos_ids + at, mask=wanted[:, None] & (index < eos_count)[None, :], other=-1)
    same = (ids[:, None, :] == token[:, :, None]) & (ids >= 0)[:, None, :]
    return mask & (tl.max(same.to(tl.int32), axis=2) > 0)


@triton.jit
def close(
    request, mask, num_accepted, next_token, bits, tokens, tokens_stride, starts, lengths, finished, width,
    max_len, eos_ids, eos_count, next_window, num_accepted_out, next_out, status_out, num_emitted_out,
    WIDTH: tl.constexpr, EOS_BLOCK: tl.constexpr,
):  # fmt: skip
    """Hand out the verdict of each request where `mask`, or where `finished` is given advance its state by it.

    The program may be the only one that still looks at these requests: what it reads, it writes.
    """
    if finished is None:
        tl.store(num_accepted_out + request, num_accepted, mask=mask)
        tl.store(next_out + request, next_token, mask=mask)
        tl.store(status_out + request, bits, mask=mask)
    else:
        running = mask & (tl.load(finished + request, mask=mask, other=ERROR) == RUNNING)
        length = tl.minimum(tl.load(lengths + request, mask=running, other=0) + 1, width)
        begin = tl.load(starts + request, mask=running, other=0)
        limit = tl.load(max_len + request, mask=running, other=0)
        status = tl.load(status_out + request, mask=running, other=0)
        failed = running & ((bits & ~DRAFT_INVALID) != 0)
        advancing = running & (failed == 0)
        whole = advancing & (num_accepted == length)
        chain = tokens + request * tokens_stride + begin

        end = begin + num_accepted + tl.where(whole, 0, 1)
        reaches_limit = end >= limit
        end = tl.where(reaches_limit, tl.maximum(limit, begin), end)
        column = tl.arange(0, WIDTH)[None, :]
        new = advancing[:, None] & (begin[:, None] + column < end[:, None])
        drafted = tl.load(chain[:, None] + column, mask=new & (column < num_accepted[:, None]), other=-1)
        gained = tl.where(column < num_accepted[:, None], drafted, next_token[:, None])
        stops = is_eos(gained, eos_ids, eos_count, request, new, EOS_BLOCK)
        first = tl.min(tl.where(stops, column, WIDTH), axis=1)
        end = tl.where(first < WIDTH, begin + first + 1, end)
        reason = tl.where(first < WIDTH, STOP, tl.where(reaches_limit, LENGTH, RUNNING))
        emitted = tl.where(advancing, end - begin, 0).to(tl.int32)

        tl.debug_barrier()  # all threads have read what is written now
        tl.store(chain + num_accepted, next_token, mask=advancing & (whole == 0))
        tl.store(num_emitted_out + request, emitted, mask=mask)
        tl.store(num_accepted_out + request, tl.minimum(num_accepted, emitted), mask=mask)
        tl.store(starts + request, end, mask=advancing)
        tl.store(lengths + request, tl.where(whole & (reason == RUNNING), next_window, 0), mask=running)
        tl.store(finished + request, tl.where(failed, ERROR, reason), mask=running)
        tl.store(status_out + request, status | bits, mask=running)
