"""A draft is made on a GPU, goes on after an interruption, and decodes there what its target decodes alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.distill import distill
from tests.cli.conftest import make_model, make_tokenizer

pytestmark = pytest.mark.gpu

OPTIONS = {"draft_vocab": 200, "answers": 2, "answer_tokens": 12, "batch_answers": 16, "batch_tokens": 256, "seed": 1}


@pytest.mark.parametrize(("dtype", "compiles"), [(torch.bfloat16, True), (torch.float32, False)])
def test_a_gpu_distills(
    device: torch.device, dtype: torch.dtype, compiles: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiles:
        monkeypatch.setattr("pearl_decode.distill.MANY_TOKENS", 600)
    prompts, tokenizer = tmp_path / "prompts.jsonl", make_tokenizer()
    prompts.write_text("".join(json.dumps({"prompt": f"word {'of ' * i}"}) + "\n" for i in range(32)))
    target = make_model().to(device, dtype)

    def made(name: str, tokens: int, resume: bool = False) -> float:
        out = tmp_path / name
        return distill(
            target, prompts, out, own_prompts=8, tokenizer=tokenizer, tokens=tokens, resume=resume, **OPTIONS
        ).acceptance

    untrained, first = made("untrained", 0), made("draft", 600)
    assert first > untrained
    assert made("draft", 2400, resume=True) > first
    training = json.loads((tmp_path / "draft" / "draft.json").read_text())["training"]
    assert training["tokens_seen"] >= 2400
    assert training["device"].startswith("CPU") == (device.type == "cpu")
    with PearlDecoder.from_pretrained(target, tmp_path / "draft", gamma=3, compile=False) as decoder:
        params = SamplingParams(max_tokens=24, temperature=1.0, seed=1)
        drafted, alone = (
            [result.token_ids for result in decoder.generate([[5, 6, 7], [9]], params, strategy=each, rule="coupled")]
            for each in ("pearl", "autoregressive")
        )
    assert drafted == alone or dtype is torch.bfloat16  # which rounds a window otherwise than single rows
