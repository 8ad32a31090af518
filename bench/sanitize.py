"""Small calls of every CUDA kernel, for compute-sanitizer to watch.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 python bench/sanitize.py

Without torch's cache every tensor is an allocation of its own, so that a read past its end is seen. What comes out is
compared with the reference, so that what ran is what was meant to run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # for tests/, which is not installed

from pearl_kernels import Purpose, _cuda
from tests.gpu.decoding import new_decoder
from tests.gpu.elsewhere import moved
from tests.kernels.cases import SampleCase, VerifyCase, mixed_params, peaked_logits, verify_case

RULES = ("greedy", "token", "block", "coupled")
# A row shorter than a vector, one of odd length, a part of a slice, a slice and a bit, and more than are fetched ahead.
VOCABULARIES = (3, 203, 2100, 9001, 40003)


def cases() -> list[SampleCase | VerifyCase]:
    found: list[SampleCase | VerifyCase] = []
    for vocab in VOCABULARIES:
        for dtype in (torch.float32, torch.bfloat16):
            logits = peaked_logits((9, vocab), torch.Generator().manual_seed(vocab)).to(dtype)
            positions = torch.arange(9)
            found.append(SampleCase(logits, mixed_params(9), positions, Purpose.DRAFT, positions))
            found += [verify_case(9, 4, vocab, rule=rule, dtype=dtype, seed=vocab) for rule in RULES]
    found += [verify_case(9, 4, 2100, rule=rule, stats=False) for rule in ("token", "block")]
    found += [verify_case(9, 4, 2100, rule=rule, one_hot=True) for rule in ("token", "block")]
    found += [verify_case(9, 4, 2100, rule=rule, mapped=True, stats=False) for rule in ("token", "block")]
    found += [verify_case(3, 32, 2100, rule=rule, dtype=torch.float16) for rule in RULES]
    return found


@contextmanager
def few_multiprocessors(device: torch.device) -> Iterator[None]:
    """Within: kernels are launched as on a device of one multiprocessor, where a few requests are many."""
    properties = _cuda._properties
    capability = properties(device)[1]
    _cuda._properties = lambda _: (1, capability)
    try:
        yield
    finally:
        _cuda._properties = properties


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("sanitize: torch sees no CUDA device")
    device = torch.device("cuda")
    differing = rows = 0
    for case in cases():
        wanted = case.run("reference")
        for few in (False, True):
            with few_multiprocessors(device) if few else nullcontext():
                got = moved(moved(case, device).run("cuda"), torch.device("cpu"))
            rows += len(got[0])
            differing += int((got[0] != wanted[0]).sum())
    for rule in RULES:
        decoder = new_decoder(device, "cuda", rule, rows=9, vocab=203, length=20)
        for _ in range(4):
            decoder.round()
    torch.cuda.synchronize()
    print(f"{differing} of {rows} rows differ from the reference's")
    if differing > 1:  # one draw may lie within rounding of a boundary
        raise SystemExit(1)


if __name__ == "__main__":
    main()
