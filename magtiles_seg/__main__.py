"""`python -m magtiles_seg`: the command line."""

from __future__ import annotations

import sys

from magtiles_seg.cli import main

if __name__ == "__main__":
    sys.exit(main())
