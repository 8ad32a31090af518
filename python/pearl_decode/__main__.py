"""python -m pearl_decode: the command line."""

import sys

from pearl_decode.cli import main

sys.exit(main())
