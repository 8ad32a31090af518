"""Models and tokenizers from hub ids, paths and the built-in name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from pearl_decode import builtin
from pearl_decode.linear import use_window_linear
from pearl_decode.trials import attend_to_windows


def default_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class LoadError(ValueError):
    """A model or a tokenizer that cannot be loaded."""


def load_model(
    role: str,
    spec: str | os.PathLike[str] | PreTrainedModel,
    dtype: torch.dtype | None,
    device: torch.device | None = None,
    device_map: Any | None = None,
) -> PreTrainedModel:
    """A model from a hub id, a path, the built-in name or as it is, which then stays where it is.

    dtype:      None: what the checkpoint says; but on a CPU only the weights, and the model computes in float32
    device:     None: the GPU if there is one
    device_map: as transformers', instead of the device
    Raises LoadError naming the role for a path that does not exist, a model that cannot be loaded, or a checkpoint
    that lacks weights of its model or has them in other shapes: transformers would draw those at random.
    """
    if not isinstance(spec, (str, os.PathLike)):
        return spec
    source = resolve(role, spec)
    loader: Any = AutoModelForCausalLM  # whose types leave the loading info out
    try:
        model, found = loader.from_pretrained(
            source,
            dtype=dtype or "auto",
            device_map=device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # its own error does not say which
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a damaged file or a mistyped config: of any class, and not all are ValueErrors
        raise LoadError(f"{role}: cannot load a causal model from {str(spec)!r}: {error}") from error
    _check_complete(f"{role}: {str(spec)!r}", found)
    if device_map is None:
        model = model.to(device or default_device())
    if model.device.type == "cpu" and dtype in (None, torch.float32):
        use_window_linear(model)
        attend_to_windows(model)
    loaded: PreTrainedModel = model
    return loaded


def _check_complete(name: str, found: dict[str, Any]) -> None:
    """found: what transformers says of the weights it read."""
    if missing := sorted(found["missing_keys"]):
        raise LoadError(f"{name} lacks {len(missing)} of the model's weights, {missing[0]!r} first")
    if mismatched := sorted(found["mismatched_keys"]):
        weight, got, expected = mismatched[0]
        raise LoadError(f"{name}: {weight!r} must be {tuple(expected)} by the config, got {tuple(got)}")


def load_tokenizer(role: str, spec: str | os.PathLike[str]) -> Any:
    """The tokenizer that belongs to a model's id, path or built-in name."""
    source = resolve(role, spec)
    try:
        return AutoTokenizer.from_pretrained(source)
    except Exception as error:  # tokenizers raises nothing more special
        raise LoadError(f"{role}: cannot load a tokenizer from {str(spec)!r}: {error}") from error


def resolve(role: str, spec: str | os.PathLike[str]) -> str:
    """What transformers' loaders take for a model's id, path or built-in name."""
    name = os.fspath(spec)
    if name == builtin.BUILTIN_TARGET:
        return str(builtin.ensure_builtin())
    path = Path(os.path.expanduser(name))  # not as Path does it: that raises for a user who is not there
    if path.exists():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise LoadError(f"{role}: expected a model directory or a hub id, but there is no {name!r}")
    return name


def check_same_tokens(target: Any, draft: Any) -> None:
    """Raise ValueError unless both tokenizers give every id the same meaning.

    Padded vocabulary sizes of the models may differ; the tokens, and the special ones, may not.
    """
    names = f"target tokenizer {target.name_or_path!r} and draft tokenizer {draft.name_or_path!r}"
    of_target = {index: token for token, index in target.get_vocab().items()}
    of_draft = {index: token for token, index in draft.get_vocab().items()}
    if of_target != of_draft:
        first = min(i for i in of_target.keys() | of_draft.keys() if of_target.get(i) != of_draft.get(i))
        raise ValueError(
            f"{names} must be the same; the first differing id is {first}: "
            f"{of_target.get(first)!r} in the target, {of_draft.get(first)!r} in the draft"
        )
    for kind in ("bos_token_id", "eos_token_id"):
        if getattr(target, kind) != getattr(draft, kind):
            raise ValueError(
                f"{names} must have the same special tokens; {kind} is {getattr(target, kind)} in the target, "
                f"{getattr(draft, kind)} in the draft"
            )
