"""What training calls at every step, compiled, where torch can."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

LOGGER = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


def compiled(what: str, function: Callable[P, R], *, fullgraph: bool) -> Callable[P, R]:
    """`function` with its small operations fused: what they read and write goes through memory once.

    Compiles at the first call, for tensors of any size. Where torch cannot, it runs as it is, and the log says why.
    what: for the log; fullgraph: as of torch.compile
    """
    run: Callable[P, R] = torch.compile(function, fullgraph=fullgraph, dynamic=True)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal run
        try:
            return run(*args, **kwargs)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            LOGGER.warning("%s runs as it is, torch cannot compile it here: %s", what, error)
            run = function
            return run(*args, **kwargs)

    return call
