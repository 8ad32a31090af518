"""The model card beside a draft."""

from __future__ import annotations

from pearl_decode.drafts import DraftConfig


def model_card(config: DraftConfig) -> str:
    """README.md of a draft's directory: what it is, how it was made, what was measured."""
    made = config.training
    parameters = "\n".join(f"| {key} | {value} |" for key, value in made.items() if key != "command")
    command = f"Made by:\n\n    {made['command']}\n\n" if made.get("command") else ""
    return f"""# Draft for {config.target}

{len(config.layers)} decoder layers for speculative decoding with `{config.target}`, begun as its layers
{", ".join(map(str, config.layers))} and distilled from its own answers. It draws {config.vocab_size} of the target's
{config.target_vocab_size} token ids; token embedding and head are the target's and are not stored here. It has no use
without that target, and guesses only: what is decoded with it is the target's own output.

    PearlDecoder.from_pretrained("{config.target}", DIRECTORY)

{command}Acceptance is measured on prompts that were held out of training: `held_out_acceptance` is the mean over
tokens of sum_v min(target_prob, draft_prob) at temperature 1, `held_out_greedy_agreement` the share of tokens where the
likeliest token is the same. They are of the target's own answers, which are easier than a draft's own continuations.
`induction` is added to the logit of the token that followed the last time a text ended in the same 1, 2, ... tokens; it
was fitted to the same answers.

| training | |
|---|---|
{parameters}
"""
