"""Which tests run on interpreted (Triton) and emulated (CUDA) kernels: a call takes not a millisecond but a second."""

from __future__ import annotations

import os
from collections import defaultdict

import pytest

# Triton: of each test's parameters this many, evenly spread over them.
KEPT = 3
KEPT_OF = {
    "test_sample_agrees_on_rows_of_every_shape": 2,
    "test_tokens_that_cannot_be_drawn_change_nothing": 1,
    "test_opcheck_verify": 1,
}
# Calls for 100,000 rows take longest, and those with filters a minute.
KEPT_ONLY = {
    "test_first_two_tokens_have_the_targets_joint_law": "block-plain",
    "test_residual_is_independent_of_the_drafts_noise": "plain",
}
LAWS_OF_CUDA = ("test_first_two_tokens_have_the_targets_joint_law",)
# All of them need calls for 100,000 rows again and again. These kernels are the reference's equal token for token in
# all other tests, and the laws follow.
LEFT_OUT = (
    "test_first_token_has_the_targets_law",
    "test_accepted_length_has_the_rules_law",
    "test_length_and_next_token_given_the_chain_have_the_rules_laws",
    "test_sampled_tokens_have_the_filtered_law",
    "test_block_accepts_no_fewer_than_token_on_average",
    "test_first_token_has_the_targets_law_on_32_tokens",
    "test_three_tokens_over_several_rounds_have_the_targets_joint_law",
    "test_epochs_of_the_drafts_noise_are_needed_by_block_and_not_by_token",
    "test_block_is_token_in_law_for_one_token_or_a_certain_draft",
    "test_consecutive_positions_draw_independently",
)


def leave_out_most(items: list[pytest.Item]) -> None:
    """Skip the tests that are too long to interpret or emulate; PEARL_TEST_ALL=1 runs them."""
    if os.environ.get("PEARL_TEST_ALL"):
        return
    skip = pytest.mark.skip(reason="takes long where kernels are interpreted; PEARL_TEST_ALL=1 runs it")
    for backend in ("triton", "cuda"):
        for tests in tests_of(backend, items).values():
            kept = kept_of(backend, tests)
            for item in tests:
                if item not in kept:
                    item.add_marker(skip)


def tests_of(backend: str, items: list[pytest.Item]) -> dict[str, list[pytest.Function]]:
    """The tests of a backend, those that differ in other parameters together."""
    same_test: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if isinstance(item, pytest.Function) and parameters.get("backend") == backend:
            same_test[item.nodeid.partition("[")[0]].append(item)
    return same_test


def kept_of(backend: str, tests: list[pytest.Function]) -> list[pytest.Function]:
    """Those of one test's parameters that run on `backend`."""
    name = tests[0].originalname
    if name in LEFT_OUT:
        return []
    if name in KEPT_ONLY:
        one = f"[{backend}-{KEPT_ONLY[name]}]"
        return [item for item in tests if item.name.endswith(one) and (backend == "triton" or name in LAWS_OF_CUDA)]
    if backend == "cuda":
        return tests
    return [tests[i] for i in sorted(spread(len(tests), KEPT_OF.get(name, KEPT)))]


def spread(count: int, kept: int) -> set[int]:
    """So many of `count` indices at equal distances: the first, the last, and between them; or one in the middle."""
    if kept >= count:
        return set(range(count))
    if kept < 2:
        return {(count - 1) // 2} if kept else set()
    return {round(i * (count - 1) / (kept - 1)) for i in range(kept)}
