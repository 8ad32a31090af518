"""What a round costs beyond the models: paced lanes, so that any machine can measure it.

    python bench/bench_overlap.py [--json FILE]

Two lanes sleep for a set time per forward (the tiny model behind them takes far less, and is loaded as decoders load
theirs). A PEARL round should then take as long as the longer lane, max(target, gamma * draft), and a sequential round
as long as both, target + gamma * draft.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from harness import describe_machine
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.checkpoints import load_model
from pearl_decode.lanes import PacedLane
from pearl_decode.lanes.cpu import available_cores
from pearl_decode.storage import pack_weights

CASES = [(40, 5, 8), (40, 10, 4), (40, 10, 2), (20, 5, 4), (10, 5, 4)]  # target ms, draft ms, gamma
TOKENS = 120


def tiny_model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        model = load_model("target", folder, None, torch.device("cpu"))
    pack_weights(model)
    return model


def round_time_s(model: PreTrainedModel, strategy: str, target_ms: float, draft_ms: float, gamma: int) -> float:
    cores = available_cores()
    lanes = (
        PacedLane("target", cores[:1], target_ms / 1e3),
        PacedLane("draft", cores[-1:], draft_ms / 1e3),
    )
    with PearlDecoder(model, model, strategy=strategy, gamma=gamma, lanes=lanes) as decoder:
        [result] = decoder.generate([[1, 2, 3]], SamplingParams(max_tokens=TOKENS, ignore_eos=True))
    return result.stats.decode_s / result.stats.rounds


def row_of(strategy: str, case: tuple[int, int, int], measured_s: list[float]) -> dict[str, Any]:
    """A case's row, from the seconds of a round in each repeat."""
    target_ms, draft_ms, gamma = case
    lanes_ms = [target_ms, gamma * draft_ms]
    floor_ms = max(lanes_ms) if strategy == "pearl" else sum(lanes_ms)
    ratios = sorted(1e3 * seconds / floor_ms for seconds in measured_s)
    return {
        "strategy": strategy, "target_ms": target_ms, "draft_ms": draft_ms, "gamma": gamma, "floor_ms": floor_ms,
        "round_ms": 1e3 * median(measured_s), "ratio": median(ratios), "ratio_min": ratios[0], "ratio_max": ratios[-1],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows there")
    args = parser.parse_args()
    model = tiny_model()
    times: dict[tuple[str, tuple[int, int, int]], list[float]] = {}
    for _ in range(args.repeat):  # all cases in turn, so that a slow moment of the machine is shared out
        for case in CASES:
            for strategy in ("pearl", "sequential"):
                times.setdefault((strategy, case), []).append(round_time_s(model, strategy, *case))
    rows = [row_of(strategy, case, measured) for (strategy, case), measured in times.items()]
    table = Table("strategy", "target ms", "draft ms", "gamma", "floor ms", "round ms", "round / floor", "min-max")
    for row in sorted(rows, key=lambda row: str(row["strategy"])):
        table.add_row(
            row["strategy"], *(str(row[key]) for key in ("target_ms", "draft_ms", "gamma", "floor_ms")),
            f"{row['round_ms']:.2f}", f"{row['ratio']:.3f}", f"{row['ratio_min']:.3f}-{row['ratio_max']:.3f}",
        )  # fmt: skip
    Console(width=120).print(table)
    if args.json:
        args.json.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
