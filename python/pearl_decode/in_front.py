"""Classes of ours in front of a model's own: a module stays the object that it is, with forward taken over."""

from __future__ import annotations

from torch import nn

_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def put_in_front(ours: type[nn.Module], module: nn.Module) -> None:
    """Let a module have the methods of `ours`, and of its own class what those leave to it."""
    own = type(module)
    if (ours, own) not in _CLASSES:
        _CLASSES[ours, own] = type(own.__name__, (ours, own), {"own_class": own})
    module.__class__ = _CLASSES[ours, own]


def own_class(module: nn.Module) -> type[nn.Module]:
    """A module's class without ours in front of it; any other module's class as it is."""
    own: type[nn.Module] = vars(type(module)).get("own_class", type(module))
    return own
