"""Whole decoding on one device: every strategy and transformers' assisted generation, by acceptance, batch and context.

    python bench/bench_decode.py --synthetic [--device cuda] [--json FILE] [--plot DIR]

Pairs of the shapes of known models are made with random weights; their draft's guesses are right as often as is asked
(agreement.py), the text is the target's own (model_pairs.py). The built-in pair is measured as it is, where it is in
the cache. In a cell all systems take turns on the same prompts; the gamma of each strategy is among those that the
formulas of costs favour for the lane times measured in the cell. Rounds count once a run is warm and for as long as no
row has ended, so prompt processing is left out on all sides, and so is the capture of graphs (decode_runs.py).

A pair may take its share of BUDGET_S; of its cells those nearest to the first come first, and what did not fit is named
in the report, which is written anew after each cell. Models run as they are, in graphs, but not compiled: that takes
up to a minute for each width of a window. `--compile` waits for it.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from decode_cell import Cell, Effort, Outcome, Texts, measure_cell
from decode_report import draw_lanes, draw_speeds, print_rows
from harness import describe_machine, read_once
from model_pairs import DTYPES, PAIRS, ModelPair, NoPairError, make_pair, missing_bytes

from pearl_decode.builtin import BUILTIN_TARGET

PRIMARY = 0.8  # the acceptance whose cells come first
GRIDS = {
    "full": {"batches": (1, 4, 16), "contexts": (512, 8192), "acceptances": (0.8, 0.95, 0.6, 0.9), "tokens": 128},
    "tiny": {"batches": (1, 4), "contexts": (24,), "acceptances": (0.8, 0.6, 0.9), "tokens": 96},
}


def cells_of(pair: str, batches: Sequence[int], contexts: Sequence[int], acceptances: Sequence[float]) -> list[Cell]:
    """Those that differ from the first in one thing, then in two, then all; batch and context before acceptance."""
    asked: Sequence[float | None] = [None] if pair == BUILTIN_TARGET else acceptances
    order = [
        ((c > 0) + (b > 0) + (a > 0), a, c, b)
        for c in range(len(contexts))
        for b in range(len(batches))
        for a in range(len(asked))
    ]
    return [Cell(pair, contexts[c], batches[b], asked[a]) for _, a, c, b in sorted(order)]


def expected_s(cell: Cell, last: tuple[Cell, Outcome] | None) -> float:
    """What a cell should take: as the one before, with more or less to read first. 0 if it is the first."""
    if last is None:
        return 0.0
    before, outcome = last
    larger = cell.context * cell.batch / (before.context * before.batch)
    return outcome.seconds + outcome.prefill_s * (larger - 1)


def read_rate(device: torch.device) -> tuple[float, dict[str, Any]]:
    """Bytes per second at which memory is read, and what the report says of the device."""
    if device.type == "cuda":
        import gpu

        found = gpu.describe(device, {})
        return 1e9 * float(found["read_gb_per_s"]), found
    memory, times = torch.zeros(64 << 20, dtype=torch.uint8), []
    read = read_once([memory])
    for _ in range(9):
        start = time.perf_counter()
        read()
        times.append(time.perf_counter() - start)
    rate = memory.nbytes / median(times)
    return rate, {"read_gb_per_s": rate / 1e9}


class Warnings(logging.Handler):
    """Keeps them: what could not be captured or compiled is slower than what is meant to be measured."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        if (message := record.getMessage()) not in self._messages:
            self._messages.append(message)


class Bench:
    """What was found so far. save: called after every cell with the whole of it."""

    def __init__(self, args: argparse.Namespace, save: Callable[[dict[str, Any]], None]) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.read_bytes_per_s, about = read_rate(self.device)
        settings = {
            name: getattr(args, name)
            for name in ("pairs", "batches", "contexts", "acceptances", "tokens", "repeats", "candidates", "compile")
        }
        self.report: dict[str, Any] = {
            "title": "decode",
            "machine": describe_machine() | about,
            "settings": settings | {"dtype": str(DTYPES[args.device]).removeprefix("torch.")},
            "rows": [], "errors": [], "skipped": [], "warnings": [],
        }  # fmt: skip
        logging.getLogger("pearl_decode").addHandler(Warnings(self.report["warnings"]))
        self._save = save
        self._end = time.perf_counter() + args.budget_s

    def run(self) -> None:
        pair = None
        for number, name in enumerate(self.args.pairs):
            now = time.perf_counter()
            end = now + (self._end - now) / (len(self.args.pairs) - number)
            try:
                pair = make_pair(name, self.device, DTYPES[self.args.device], known=pair)
            except NoPairError as error:
                self._skip({"pair": name}, str(error))
                continue
            self._run_pair(pair, end)
            if self._shares_no_target(number):
                pair = None
                self._free()

    def _shares_no_target(self, number: int) -> bool:
        """Whether the pair after this one has another target, whose memory is then needed."""
        names = self.args.pairs[number : number + 2]
        return len({PAIRS[name][0] for name in names}) == len(names)

    def _run_pair(self, pair: ModelPair, end: float) -> None:
        args, texts = self.args, Texts()
        effort = Effort(args.tokens, args.repeats, args.candidates, args.compile)
        last: tuple[Cell, Outcome] | None = None
        drawn = not args.plot
        for cell in cells_of(pair.name, args.batches, args.contexts, args.acceptances):
            left_s, wanted_s = end - time.perf_counter(), expected_s(cell, last)
            if wanted_s > left_s:
                self._skip(vars(cell), f"should take {wanted_s:.0f} s, {left_s:.0f} s are left for this pair")
                continue
            if (lacking := missing_bytes(pair, cell.batch, cell.context + args.tokens)) > 0:
                self._skip(vars(cell), f"needs {lacking / 1e9:.1f} GB more than are free")
                continue
            try:
                outcome = measure_cell(pair, cell, effort, texts, self.read_bytes_per_s)
            except Exception as error:  # out of memory, most likely: smaller cells may fit
                self.report["errors"].append(vars(cell) | {"error": f"{type(error).__name__}: {error}"})
                self._save(self.report)
                self._free()
                continue
            print_rows(cell, outcome.rows)
            warm = bool(self.report["rows"])  # the first cell of all also waited for kernels to be compiled
            self.report["rows"] += outcome.rows
            self.report["errors"] += [
                vars(cell) | {"system": name, "error": error} for name, error in outcome.errors.items()
            ]
            self._save(self.report)
            self._free()
            if not drawn:
                self._draw_lanes(pair, cell, outcome.rows)
                drawn = True
            last = (cell, outcome) if warm else None

    def _draw_lanes(self, pair: ModelPair, cell: Cell, rows: list[dict[str, Any]]) -> None:
        try:
            draw_lanes(pair, cell, rows, self.args.plot)
        except Exception as error:  # whatever it is, the other cells are measured
            self.report["errors"].append(vars(cell) | {"error": f"lanes: {type(error).__name__}: {error}"})

    def _skip(self, what: dict[str, Any], reason: str) -> None:
        print(f"not measured: {', '.join(f'{key} {value}' for key, value in what.items())}: {reason}")
        self.report["skipped"].append({**what, "reason": reason})
        self._save(self.report)

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--synthetic", action="store_true", help="pairs with random weights beside the built-in one")
    parser.add_argument("--device", choices=list(DTYPES), default="cpu")
    parser.add_argument("--shapes", choices=list(GRIDS), default="full", help="tiny: what a test has time for")
    parser.add_argument("--pairs", type=_list(str), help=f"of {','.join(PAIRS)}")
    parser.add_argument("--batches", type=_list(int))
    parser.add_argument("--contexts", type=_list(int), help="tokens of the prompts")
    parser.add_argument("--acceptances", type=_list(float), help="asked of the drafts with random weights")
    parser.add_argument("--tokens", type=int, help="decoded in each run")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=2, help="gammas measured of each strategy")
    parser.add_argument("--budget-s", type=float, default=220.0, help="seconds for all pairs together")
    parser.add_argument("--compile", action="store_true", help="let torch fuse the models' kernels")
    parser.add_argument("--json", type=Path, help="write the report there")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw speeds and lanes there; needs matplotlib")
    args = parser.parse_args()
    for name, value in GRIDS[args.shapes].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.pairs is None:
        synthetic = [name for name in PAIRS if name != BUILTIN_TARGET and (name == "tiny") == (args.shapes == "tiny")]
        wanted = synthetic if args.synthetic else []
        args.pairs = [name for name in PAIRS if name in wanted or (name == BUILTIN_TARGET and args.shapes == "full")]
    unknown = [name for name in args.pairs if name not in PAIRS]
    if unknown or not args.pairs:
        parser.error(f"--pairs must be of {', '.join(PAIRS)}, got {', '.join(unknown) or 'none: give --synthetic'}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if args.plot and find_spec("matplotlib") is None:
        parser.error("--plot: matplotlib is not installed")
    args.acceptances = sorted(args.acceptances, key=lambda asked: asked != PRIMARY)
    return args


def _list(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"list of {kind.__name__}"  # what argparse calls a bad one
    return parse


def main() -> None:
    args = arguments()
    if args.plot:
        args.plot.mkdir(parents=True, exist_ok=True)

    def save(report: dict[str, Any]) -> None:
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")

    bench = Bench(args, save)
    bench.run()
    if args.plot:
        draw_speeds(bench.report["rows"], args.plot)
    if not bench.report["rows"]:
        raise SystemExit(f"nothing was measured: {bench.report['errors'] or bench.report['skipped']}")
    if bench.report["errors"]:
        raise SystemExit("\n".join(str(error) for error in bench.report["errors"]))


if __name__ == "__main__":
    main()
