"""pearl-decode doctor: what this installation is, and what it can use on this machine."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_command(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="show versions, hardware, backends and the model cache")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from pearl_decode.doctor import examine

    findings = examine()
    if args.json:
        print(json.dumps(findings, indent=2))
        return 0
    width = max(len(name) for section in findings.values() for name in section)
    for title, section in findings.items():
        print(title)
        for name, value in section.items():
            print(f"  {name:<{width}}  {value}")
    return 0
