"""Print the tables of a report as Markdown: python -m pearl_decode.bench.tables REPORT.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pearl_decode.bench.report import markdown


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pearl_decode.bench.tables REPORT.json")
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
