"""``python -m brainfm_lib.reference``: the same as ``brainfm reference``."""

import sys

from brainfm_lib.cli import main

sys.argv[1:1] = ["reference"]
main()
