"""pearl-decode doctor: versions, hardware, backends, model cache."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import pearl_kernels
from pearl_decode import doctor
from pearl_kernels._C import build_info
from tests.cli.conftest import Cli


def test_every_backend_is_listed_with_its_reason(cli: Cli):
    outcome = cli("doctor")
    assert outcome.status == 0
    listed = outcome.out.partition("\nbackends\n")[2].splitlines()
    for name, backend in pearl_kernels.backends().items():
        line = next(line for line in listed if line.split()[:1] == [name])
        assert line.split()[1] == ("yes" if backend.available else "no")
        assert backend.reason in line


def test_json_has_versions_build_and_cache(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PEARL_CACHE", str(tmp_path))
    findings = cli("doctor", "--json").json()
    assert findings["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert findings["extension"]["cuda"].startswith("yes" if build_info()["cuda"] else "no: ")
    assert findings["built-in model"]["state"] == "not made yet"
    assert findings["built-in model"]["folder"].startswith(str(tmp_path))


def test_the_build_of_torch_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "__version__", "2.13.0+other")
    assert cli("doctor", "--json").json()["versions"]["torch"] == "2.13.0+other"


def test_missing_extension_is_said(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pearl_kernels._C", None)
    assert cli("doctor", "--json").json()["extension"]["state"].startswith("missing: ")


def test_an_extension_that_cannot_be_used_is_said(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    def build_info() -> None:
        raise RuntimeError("PEARL_SIMD=best is not compiled in")

    monkeypatch.setattr(sys.modules["pearl_kernels._C"], "build_info", build_info)
    assert cli("doctor", "--json").json()["extension"] == {"state": "unusable: PEARL_SIMD=best is not compiled in"}


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ("always [madvise] never\n", "yes: madvise"),
        ("[always] madvise never\n", "yes: always"),
        ("always madvise [never]\n", "none: {path} says never; with madvise decoding on a CPU is faster"),
        (None, "none: this system has no transparent huge pages"),
    ],
)
def test_says_whether_the_system_has_huge_pages(
    cli: Cli, settings: str | None, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "enabled"
    if settings is not None:
        path.write_text(settings)
    monkeypatch.setattr(doctor, "HUGE_PAGES", path)
    assert cli("doctor", "--json").json()["machine"]["huge pages"] == wanted.format(path=path)
