"""Distilled drafts: a few decoder layers of the target's own class, with the target's embedding and head.

A directory holds draft.safetensors (the layers and the final norm in bfloat16, and d2t), draft.json (whose draft it is)
and README.md, its model card. What the draft shares with its target is not stored.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from transformers import PreTrainedModel

from pearl_decode.builtin import BUILTIN_DRAFT
from pearl_decode.first_layers import adopt_buffers
from pearl_decode.trials import run_windows_like

FORMAT = 1
CONFIG_FILE, WEIGHTS_FILE = "draft.json", "draft.safetensors"
_VOLATILE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}


@dataclass(frozen=True)
class DraftConfig:
    """What draft.json says.

    target:      the name it was distilled under; config_hash: of the target's config, see `config_hash`
    layers:      which of the target's decoder layers it began as
    vocab_size:  ids it can draw, of the target's target_vocab_size
    training:    how it was made, for people
    """

    target: str
    config_hash: str
    layers: list[int]
    vocab_size: int
    target_vocab_size: int
    training: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def draft_directory(spec: str | os.PathLike[str]) -> Path | None:
    """The directory of a distilled draft, given its path or the shipped draft's name; None for anything else."""
    if os.fspath(spec) == BUILTIN_DRAFT:
        return Path(__file__).parent / "data" / BUILTIN_DRAFT
    path = Path(os.path.expanduser(spec))
    return path if (path / CONFIG_FILE).is_file() else None


def load_draft(directory: str | os.PathLike[str], target: PreTrainedModel) -> PreTrainedModel:
    """The draft in a directory, in the target's dtype and on its device; embedding and head are the target's.

    Raises ValueError if it was distilled for another target, or the directory cannot be read.
    """
    directory = Path(directory)
    config = read_config(directory)
    found = config_hash(target)
    if config.config_hash != found:
        raise ValueError(
            f"draft: {directory} was distilled for {config.target!r} (config {config.config_hash[:12]}), but the "
            f"target is {target.config.name_or_path or type(target).__name__!r} (config {found[:12]}); "
            "make it one with `pearl-decode distill`"
        )
    path = directory / WEIGHTS_FILE
    try:
        stored = safetensors.torch.load_file(path)
        d2t, induction = (stored.pop(name, None) for name in ("d2t", "induction"))
        draft: Any = new_draft(target, config.layers, None if d2t is None else d2t.long())
    except (OSError, safetensors.SafetensorError, IndexError) as error:  # the last: ids that the target lacks
        raise ValueError(f"draft: cannot read {path}: {error}") from error
    weights = own_parameters(draft)
    expected, got = ({(name, tuple(w.shape)) for name, w in tensors.items()} for tensors in (weights, stored))
    if expected != got:
        raise ValueError(f"draft: {path} must hold {sorted(expected - got)}, got {sorted(got - expected)}")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(stored[name])
    if induction is not None:
        draft.induction = induction.to(draft.device)
    loaded: PreTrainedModel = draft.eval()
    return loaded


def save_draft(directory: Path, draft: PreTrainedModel, config: DraftConfig) -> None:
    """Write weights and config, each by one rename. Raises OSError."""
    tensors = {name: weight.detach().to("cpu", torch.bfloat16) for name, weight in own_parameters(draft).items()}
    d2t = getattr(draft, "d2t", None)
    if d2t is not None:
        tensors["d2t"] = d2t.to("cpu", torch.int32)
    induction = getattr(draft, "induction", None)
    if induction is not None:
        tensors["induction"] = induction.cpu()
    write_whole(directory / WEIGHTS_FILE, safetensors.torch.save(tensors))
    write_whole(directory / CONFIG_FILE, (json.dumps(asdict(config), indent=2) + "\n").encode())


def read_config(directory: Path) -> DraftConfig:
    """draft.json. Raises ValueError if it is not one, or of a format this version cannot read."""
    path = directory / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}, expected {FORMAT}")
        if not all(isinstance(layer, int) for layer in values["layers"]):
            raise ValueError(f"layers must be integers, got {values['layers']}")
        return DraftConfig(**values)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"draft: cannot read {path}: {error}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a kill leaves the old one or the new one."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        scratch.write_bytes(content)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def config_hash(model: PreTrainedModel) -> str:
    """sha256 of what a model's config says of its architecture: not of its name, dtype or library version."""
    values = {key: value for key, value in model.config.to_dict().items() if key not in _VOLATILE}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def new_draft(target: PreTrainedModel, layers: Sequence[int], d2t: torch.Tensor | None) -> PreTrainedModel:
    """An untrained draft: copies of the target's layers `layers` in that order, and its final norm.

    d2t: (draft_vocab,) int64, strictly increasing target ids it can draw; None for all
    Token embeddings are shared with the target, and so is the head; of a reduced one the draft has a copy.
    Raises ValueError for layers the target does not have.
    """
    total = target.config.get_text_config().num_hidden_layers
    if not layers or not all(0 <= layer < total for layer in layers):
        raise ValueError(f"draft: layers must be in [0, {total}), got {list(layers)}")
    prefix = _layers_prefix(target, total)
    with torch.device("meta"):
        draft: Any = type(target)(_draft_config(target, layers))
    weights = target.state_dict()
    shared = _shared_names(target)
    state = {}
    for name in draft.state_dict():
        source = name
        if name.startswith(prefix):
            index, _, rest = name.removeprefix(prefix).partition(".")
            source = f"{prefix}{layers[int(index)]}.{rest}"
        state[name] = weights[source] if source in shared else weights[source].clone()
    draft.load_state_dict(state, assign=True)
    adopt_buffers(draft, target)
    if d2t is not None:
        draft.set_output_embeddings(_reduced_head(draft.get_output_embeddings(), d2t))
        draft.d2t = d2t.to(target.device)
    draft.generation_config = target.generation_config
    draft.set_attn_implementation(target.config._attn_implementation)
    run_windows_like(draft, target)
    return draft  # type: ignore[no-any-return]


def own_parameters(draft: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The draft's parameters that are not its target's."""
    shared = _shared_names(draft)
    return {name: weight for name, weight in draft.named_parameters() if name not in shared}


def _shared_names(model: PreTrainedModel) -> set[str]:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return {
        f"{name}.{leaf}"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) or module is head
        for leaf, _ in module.named_parameters(recurse=False)
    }


def _reduced_head(head: Any, d2t: torch.Tensor) -> nn.Linear:
    bias = getattr(head, "bias", None)
    with torch.device("meta"):
        reduced = nn.Linear(head.weight.shape[1], len(d2t), bias=bias is not None)
    rows = d2t.to(head.weight.device)
    reduced.weight = nn.Parameter(head.weight.detach()[rows].clone(), requires_grad=False)
    if bias is not None:
        reduced.bias = nn.Parameter(bias.detach()[rows].clone(), requires_grad=False)
    return reduced


def _layers_prefix(target: PreTrainedModel, total: int) -> str:
    for name, module in target.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            return f"{name}."
    raise ValueError(f"draft: {type(target).__name__} keeps its {total} decoder layers in no module list")


def _draft_config(target: PreTrainedModel, layers: Sequence[int]) -> Any:
    config = copy.deepcopy(target.config)
    text_config = config.get_text_config()
    text_config.num_hidden_layers = len(layers)
    if getattr(text_config, "layer_types", None):
        text_config.layer_types = [text_config.layer_types[layer] for layer in layers]
    return config
