"""Time a whole forward over the rows of a window, or a prompt, beside transformers' own layers and reading the weights
once.

    python bench/bench_forward.py [--threads N] [--busy N] [--cases MODEL,...] [--json FILE]

A case is a model's path, hub id or built-in name, on a CPU. "cpu" is the model as the decoder loads it. "cpu, ordinary
pages" has its weights where torch would put them: in pages of 4 KiB, where huge ones have to be asked for.
"transformers" is the same checkpoint in float32, "transformers, bfloat16" in bfloat16, both with their own layers and
sdpa attention. All run over a cache of the decoder's, with LENGTH tokens before the window; a prompt of LENGTH tokens
is read into an empty one, as the decoder reads it. The floor reads, with as many threads, the weights that are
multiplied, in the type they are stored in and where the decoder has them. --busy adds processes that compute all the
while, as on a machine that has other work to do.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from harness import FLOOR, TRANSFORMERS, Contender, Row, compare, parse, parser_of, time_us
from report import measure
from torch import Tensor
from transformers import AutoModelForCausalLM

from pearl_decode.cache import WindowCache
from pearl_decode.checkpoints import load_model, resolve
from pearl_decode.linear import WindowLinear
from pearl_decode.models import CausalModel
from pearl_decode.storage import pack_weights
from pearl_kernels import _C

CASES = {"cpu": "smollm2-135m"}
LENGTH = 256
WIDTHS = (1, 5, 9)
PIECE = 1 << 20  # bytes a thread reads at a time


class Model:
    """A model with a cache that holds LENGTH tokens."""

    def __init__(self, model: CausalModel, ids: Tensor) -> None:
        self.model = model
        self.ids = ids
        self.cache = WindowCache(LENGTH + max(WIDTHS))
        self.logits(0, LENGTH)

    def logits(self, start: int, width: int) -> Tensor:
        with torch.inference_mode():
            return self.model.forward(self.ids[:, start : start + width], [start], self.cache, keep=width)

    def window(self, width: int) -> Callable[[], Tensor]:
        return lambda: self.logits(LENGTH, width)

    @torch.inference_mode()
    def prompt(self) -> None:
        self.model.read(self.ids[:, :LENGTH], 0, WindowCache(LENGTH + max(WIDTHS)))


def read_weights(model: CausalModel, threads: int) -> tuple[int, Callable[[], object]]:
    """Their bytes, and reading them with so many threads."""
    weights = [module.weight for module in model.model.modules() if isinstance(module, WindowLinear)]
    pieces = [
        (weight.data_ptr() + begin, min(PIECE, weight.nbytes - begin))
        for weight in weights
        for begin in range(0, weight.nbytes, PIECE)
    ]
    shares = [pieces[i::threads] for i in range(threads)]
    readers = ThreadPoolExecutor(threads)

    def read(share: list[tuple[int, int]]) -> None:
        for address, count in share:
            _C.read_bytes(address, count)

    return sum(weight.nbytes for weight in weights), lambda: list(readers.map(read, shares))


def in_ordinary_pages(case: str) -> CausalModel:
    model = load_model("target", case, None, torch.device("cpu"))
    pack_weights(model)
    for module in model.modules():
        if isinstance(module, WindowLinear):
            module.pack(module.weight.detach().clone())
    pack_weights(model)  # nothing is left to pack, but the model looks for its weights again
    return CausalModel(model)


def bench_case(case: str, repeats: int, threads: int) -> list[Row]:
    source = resolve("target", case)
    loaded = load_model("target", case, None, torch.device("cpu"))
    pack_weights(loaded)
    ours = CausalModel(loaded)
    ids = torch.randint(ours.vocab_size, (1, LENGTH + max(WIDTHS)), generator=torch.Generator().manual_seed(0))
    models = {"cpu": Model(ours, ids), "cpu, ordinary pages": Model(in_ordinary_pages(case), ids)}
    for name, dtype in ((TRANSFORMERS, torch.float32), ("transformers, bfloat16", torch.bfloat16)):
        stock = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="sdpa")
        models[name] = Model(CausalModel(stock), ids)
    bytes_read, read = read_weights(ours, threads)
    rows = []
    for width in WIDTHS:
        wanted = models[TRANSFORMERS].logits(LENGTH, width)
        torch.testing.assert_close(models["cpu"].logits(LENGTH, width), wanted, atol=2e-3, rtol=1e-3)
        contenders = [Contender(name, [model.window(width)]) for name, model in models.items()]
        times = time_us([Contender(FLOOR, [read]), *contenders], repeats)
        rows += compare(case, f"width {width}", times, bytes_read)
    contenders = [Contender(name, [model.prompt]) for name, model in models.items()]
    times = time_us([Contender(FLOOR, [read]), *contenders], max(1, repeats // 10))
    return rows + compare(case, f"prompt of {LENGTH}", times, bytes_read)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def main() -> None:
    parser = parser_of(__doc__ or "", CASES)
    parser.add_argument("--busy", type=int, default=0, help="processes that compute meanwhile (default: 0)")
    parsed = parse(parser, CASES)
    works = [partial(bench_case, case, parsed.repeats, parsed.threads) for case in parsed.cases.split(",")]
    with busy_processes(parsed.busy):
        measure("forward" + (f" beside {parsed.busy} busy processes" if parsed.busy else ""), works, parsed)


if __name__ == "__main__":
    main()
