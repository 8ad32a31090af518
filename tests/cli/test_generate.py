"""pearl-decode generate: prompts in, text or JSON out."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields

import pytest

from pearl_decode import GenerationResult, PearlDecoder, SamplingParams
from pearl_decode.cli import batch, build_parser, options
from pearl_decode.decoder import DEFAULT_RULE
from pearl_decode.engine import Plan
from pearl_decode.models import CausalModel
from pearl_decode.strategies import STRATEGIES
from tests.cli.conftest import Cli, make_model, make_tokenizer, save

PROMPT = "once upon a time"


@pytest.fixture(scope="module")
def decoder(target: str):
    with PearlDecoder.from_pretrained(target, "first-layers:2") as decoder:
        yield decoder


def chat_ids(prompt: str) -> list[int]:
    tokenizer = make_tokenizer()
    return tokenizer(f"<|user|>{prompt}<|end|><|assistant|>", add_special_tokens=False)["input_ids"]


def test_streamed_text_is_the_decoders_text(generate: Cli, decoder: PearlDecoder):
    outcome = generate(PROMPT)
    expected = decoder.generate([chat_ids(PROMPT)], SamplingParams(max_tokens=24))[0]
    assert outcome.status == 0
    assert outcome.out == expected.text + "\n"
    assert outcome.err.startswith(f"[{len(expected.token_ids)} tokens, ")


def test_text_is_the_same_streamed_or_not(generate: Cli):
    assert generate(PROMPT).out == generate(PROMPT, "--no-stream").out


def test_raw_leaves_out_the_chat_template(generate: Cli, decoder: PearlDecoder):
    outcome = generate("--raw", "--json", PROMPT)
    assert outcome.json()["token_ids"] == decoder.generate([PROMPT], SamplingParams(max_tokens=24))[0].token_ids
    assert outcome.json()["token_ids"] != generate("--json", PROMPT).json()["token_ids"]


def test_tokenizer_without_chat_template_needs_no_raw(cli: Cli, tmp_path):
    plain = save(tmp_path / "plain", make_model(), make_tokenizer(chat_template=None))
    command = ("generate", "--target", plain, "--draft", "first-layers:2", "--max-tokens", "8", "--json", PROMPT)
    assert cli(*command).json()["token_ids"] == cli(*command, "--raw").json()["token_ids"]


def test_json_has_the_result_and_its_statistics(generate: Cli):
    answer = generate("--json", PROMPT).json()
    assert set(answer) == {"prompt", *(field.name for field in fields(GenerationResult))}
    assert answer["prompt"] == PROMPT
    assert answer["error"] is None
    assert answer["finish_reason"] in ("stop", "length")
    assert answer["stats"]["emitted_tokens"] == len(answer["token_ids"])
    assert answer["stats"]["strategy"] == "auto"
    assert answer["stats"]["tokens_per_target_forward"] >= 1


@pytest.mark.parametrize("strategy", options.STRATEGIES)
@pytest.mark.parametrize("gamma", ["1", "3"])
def test_strategy_and_gamma_reach_the_decoder_and_do_not_change_greedy_text(generate: Cli, strategy: str, gamma: str):
    answer = generate("--json", "--strategy", strategy, "--gamma", gamma, PROMPT).json()
    assert (answer["stats"]["strategy"], answer["stats"]["gamma"]) == (strategy, int(gamma))
    assert answer["text"] == generate("--json", PROMPT).json()["text"]


@pytest.mark.parametrize("rule", options.RULES)
def test_seed_makes_sampled_text_repeatable(generate: Cli, rule: str):
    sampled = ("--json", "--temperature", "0.9", "--top-k", "40", "--top-p", "0.95", "--min-p", "0.01", "--rule", rule)
    sampled += ("--strategy", "pearl", "--gamma", "4")
    first, again = (generate(*sampled, "--seed", "-7", PROMPT).json() for _ in range(2))
    assert first["stats"]["rule"] == rule
    assert first["token_ids"] == again["token_ids"]
    assert first["seed"] == -7


def test_without_a_seed_every_run_draws_its_own(generate: Cli):
    seeds = {generate("--json", "--temperature", "1", PROMPT).json()["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_stop_may_be_repeated_and_cuts_before_the_first(generate: Cli):
    text = generate("--json", "--ignore-eos", PROMPT).json()["text"]
    first, later = text[5:7], text[9:11]
    answer = generate("--json", "--ignore-eos", "--stop", later, "--stop", first, PROMPT).json()
    assert answer["text"] == text[: text.index(first)]
    assert answer["finish_reason"] == "stop"


def test_ignore_eos_goes_on_to_max_tokens(generate: Cli):
    answer = generate("--json", "--ignore-eos", "--max-tokens", "400", PROMPT).json()
    assert (len(answer["token_ids"]), answer["finish_reason"]) == (400, "length")


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_prompt_comes_from_standard_input(generate: Cli, monkeypatch: pytest.MonkeyPatch, arguments):
    expected = generate(PROMPT).out
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT + "\n"))
    assert generate(*arguments).out == expected


def test_several_prompts_are_answered_in_order(generate: Cli):
    prompts = ["one", "two, and more", "3"]
    assert [answer["prompt"] for answer in generate("--json", *prompts).json_lines()] == prompts
    text = generate(*prompts).out
    assert [line for line in text.splitlines() if line.startswith("--- ")] == [
        f"--- {number}: {prompt}" for number, prompt in enumerate(prompts, start=1)
    ]


def test_each_answer_is_printed_when_it_ends(generate: Cli, monkeypatch: pytest.MonkeyPatch):
    """Of two prompts the first ends at once, as its context is full."""
    printed: list[int] = []
    monkeypatch.setattr(batch, "print_json", lambda value: printed.append(len(value["token_ids"])))
    rounds = PearlDecoder._rounds

    def counted(*arguments: object) -> Iterator[object]:
        for updates in rounds(*arguments):
            yield updates
            seen.append(len(printed))

    seen: list[int] = []
    monkeypatch.setattr(PearlDecoder, "_rounds", counted)
    assert generate("--json", "--ignore-eos", "x" * 600, PROMPT).status == 1
    assert seen[0] == 1
    assert printed == [0, 24]


def test_autoregressive_needs_no_draft(cli: Cli, generate: Cli, target: str):
    alone = cli("generate", "--target", target, "--strategy", "autoregressive", "--max-tokens", "24", PROMPT)
    assert (alone.status, alone.out) == (0, generate(PROMPT).out)


def test_a_seed_alone_makes_the_text_repeatable_whatever_is_chosen(generate: Cli):
    first, again = (generate("--json", "--temperature", "1.2", "--seed", "7", PROMPT).json() for _ in range(2))
    plain = generate("--json", "--temperature", "1.2", "--seed", "7", "--strategy", "autoregressive", PROMPT).json()
    assert first["stats"]["rule"] == "coupled"
    assert first["token_ids"] == again["token_ids"] == plain["token_ids"]


def test_dtype_reaches_the_models(generate: Cli):
    assert generate("--dtype", "bfloat16", "--json", PROMPT).status == 0


def test_offered_choices_are_the_decoders():
    assert set(options.STRATEGIES) == {"auto", *STRATEGIES}
    assert set(options.RULES) == set(Plan.RULES)
    assert options.DEFAULT_RULE == DEFAULT_RULE


@pytest.mark.parametrize(
    ("arguments", "draft", "gamma"),
    [
        ([], options.BUILTIN_DRAFT, "auto"),
        (["--gamma", "7"], options.BUILTIN_DRAFT, 7),
        (["--draft", "first-layers:3"], "first-layers:3", "auto"),
        (["--target", "a", "--draft", "b"], "b", "auto"),
        (["--target", "a"], None, "auto"),
        (["--strategy", "autoregressive"], None, "auto"),
        (["--strategy", "autoregressive", "--compare"], options.BUILTIN_DRAFT, "auto"),
    ],
)
def test_only_the_builtin_target_has_a_draft_of_its_own(arguments, draft: str | None, gamma: int | str):
    args = build_parser().parse_args(["generate", *arguments])
    options.check(args)
    assert (args.draft, args.gamma) == (draft, gamma)


def test_help_does_not_wait_for_torch():
    program = (
        "import sys; from pearl_decode.cli import main; main(['generate', '--help']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: pearl-decode generate")
    assert done.stdout.endswith("False\n")


def test_devices_and_compiling_are_passed_on(generate: Cli, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, object] = {}
    load = PearlDecoder.from_pretrained

    def noted(*args, **options):
        asked.update(options)
        return load(*args, **options)

    monkeypatch.setattr(PearlDecoder, "from_pretrained", noted)
    names = ("target_device", "draft_device", "compile")
    for arguments, wanted in (
        ((), (None, None, None)),
        (("--target-device", "cpu", "--draft-device", "cpu", "--no-compile"), ("cpu", "cpu", False)),
    ):
        assert generate(PROMPT, *arguments).status == 0
        assert tuple(asked[name] for name in names) == wanted


def test_a_pair_that_is_compiled_says_that_it_takes_time(generate: Cli, monkeypatch: pytest.MonkeyPatch):
    assert "--no-compile" not in generate(PROMPT).err
    monkeypatch.setattr(CausalModel, "is_compiled", property(lambda self: True))
    assert "compiled as they are first used, which may take minutes; --no-compile" in generate(PROMPT).err
