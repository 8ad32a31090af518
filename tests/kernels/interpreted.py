"""Which tests run on the Triton backend where it is interpreted, and a call takes not a millisecond but a second."""

from __future__ import annotations

import os
from collections import defaultdict

import pytest

# Of each test's parameters this many, evenly spread over them.
KEPT = 4
KEPT_OF = {
    "test_sample_agrees_on_rows_of_every_shape": 2,
    "test_tokens_that_cannot_be_drawn_change_nothing": 1,
}
# Calls for 100,000 rows take longest, and those with filters a minute.
KEPT_ONLY = {
    "test_first_token_has_the_targets_law": "[triton-block-plain]",
    "test_first_two_tokens_have_the_targets_joint_law": "[triton-block-plain]",
    "test_accepted_length_has_the_rules_law": "[triton-block-plain]",
    "test_length_and_next_token_given_the_chain_have_the_rules_laws": "[triton-block-plain-False]",
    "test_sampled_tokens_have_the_filtered_law": "[triton-plain]",
    "test_residual_is_independent_of_the_drafts_noise": "[triton-plain]",
}
# All of them need calls for 100,000 rows again and again; what they say of rules is said by other tests too.
LEFT_OUT = (
    "test_block_accepts_no_fewer_than_token_on_average",
    "test_first_token_has_the_targets_law_on_32_tokens",
    "test_three_tokens_over_several_rounds_have_the_targets_joint_law",
    "test_epochs_of_the_drafts_noise_are_needed_by_block_and_not_by_token",
    "test_block_is_token_in_law_for_one_token_or_a_certain_draft",
    "test_consecutive_positions_draw_independently",
)


def leave_out_most(items: list[pytest.Item]) -> None:
    """Skip the tests that are too long to interpret; PEARL_TEST_ALL=1 runs them."""
    if os.environ.get("PEARL_TEST_ALL"):
        return
    same_test: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if isinstance(item, pytest.Function) and parameters.get("backend") == "triton":
            same_test[item.nodeid.partition("[")[0]].append(item)
    skip = pytest.mark.skip(reason="takes long where Triton is interpreted; PEARL_TEST_ALL=1 runs it")
    for tests in same_test.values():
        name = tests[0].originalname
        kept = spread(len(tests), 0 if name in LEFT_OUT else KEPT_OF.get(name, KEPT))
        for i, item in enumerate(tests):
            keeps = item.name.endswith(KEPT_ONLY[name]) if name in KEPT_ONLY else i in kept
            if not keeps:
                item.add_marker(skip)


def spread(count: int, kept: int) -> set[int]:
    """So many of `count` indices at equal distances: the first, the last, and between them; or one in the middle."""
    if kept >= count:
        return set(range(count))
    if kept < 2:
        return {(count - 1) // 2} if kept else set()
    return {round(i * (count - 1) / (kept - 1)) for i in range(kept)}
