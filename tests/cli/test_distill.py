"""pearl-decode distill: what it makes, says and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.cli.conftest import Cli

SMALL = ("--draft-vocab", "200", "--answers", "1", "--answer-tokens", "8", "--batch-tokens", "256", "--tokens", "300")


def _prompts(folder: Path) -> str:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"word {i}"}) + "\n" for i in range(12)))
    return str(path)


def test_distill_makes_a_draft_that_generate_takes(cli: Cli, target: str, tmp_path: Path):
    out = str(tmp_path / "draft")
    command = ("distill", "--target", target, "--prompts", _prompts(tmp_path), "--out", out, *SMALL)
    made = cli(*command)
    assert made.status == 0, made.err
    assert "held-out acceptance" in made.err
    assert "on held-out prompts" in made.err.splitlines()[-1]
    card = (tmp_path / "draft" / "README.md").read_text()
    assert "--prompts mine.jsonl --out draft --draft-vocab 200" in card
    again = cli(*command)
    assert again.status == 2
    assert "already holds a run" in again.err
    assert cli(*command, "--resume").status == 0
    further = ("--initial-draft", out, "--out", out + "-further", "--answers", "1", "--answer-tokens", "8")
    assert cli(*command[:5], *further).status == 0
    assert "--initial-draft draft " in (tmp_path / "draft-further" / "README.md").read_text()
    options = ("--target", target, "--max-tokens", "8", "--no-stream", "word 3")
    guessed = cli("generate", "--draft", out, *options)
    alone = cli("generate", "--strategy", "autoregressive", *options)
    assert guessed.status == 0
    assert guessed.out == alone.out


def test_distill_needs_no_prompts_where_the_target_writes_them(cli: Cli, target: str, tmp_path: Path):
    made = cli("distill", "--target", target, "--own-prompts", "32", "--out", str(tmp_path / "draft"), *SMALL)
    assert made.status == 0, made.err
    assert "of 32 prompts, " in made.err
    assert "--own-prompts 32 --out draft" in (tmp_path / "draft" / "README.md").read_text()


def test_bad_arguments_end_in_one_line(cli: Cli, target: str, tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    bare = ("distill", "--target", target, "--out", str(tmp_path / "draft"))
    base = (*bare, "--prompts")
    cases = {
        bare: "prompts must be a file where there are no own_prompts",
        (*base, str(tmp_path / "none.jsonl")): "prompts: cannot read",
        (*base, str(tmp_path / "bad.jsonl")): "bad.jsonl:2: expected an object",
        (*base, _prompts(tmp_path), "--layers", "3"): "layers must be from 1 to 2 for this target, got 3",
        (*base, _prompts(tmp_path), "--hours", "-1"): "hours must be > 0",
        (*base, _prompts(tmp_path), "--tokens", "-1"): "tokens must be an integer >= 0, got -1",
    }
    for argv, message in cases.items():
        outcome = cli(*argv)
        assert outcome.status == 2, argv
        assert message in outcome.err
        assert "Traceback" not in outcome.err
    assert not (tmp_path / "draft" / "draft.json").exists()


def test_a_target_that_does_not_load_is_a_failure(cli: Cli, target: str, tmp_path: Path):
    """As it is of the other commands."""
    lacking = tmp_path / "lacking"
    shutil.copytree(target, lacking)
    (lacking / "model.safetensors").write_bytes(b"nothing")
    for name, message in ((tmp_path / "nowhere", "there is no"), (lacking, "cannot load a causal model")):
        outcome = cli("distill", "--target", str(name), "--own-prompts", "8", "--out", str(tmp_path / "draft"))
        assert outcome.status == 1
        assert outcome.err.startswith("pearl-decode: error: target: ")
        assert message in outcome.err
        assert outcome.err.count("target: ") == 1
    assert not (tmp_path / "draft").exists()
