"""`python -m magtiles_seg VERB`: the command line, where the script is not on the path."""

import sys

from magtiles_seg.cli import main

if __name__ == "__main__":
    sys.exit(main())
