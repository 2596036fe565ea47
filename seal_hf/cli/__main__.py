"""`python -m seal_hf.cli`, where the command `seal` is not on the path."""

import sys

from .command_line import main


sys.exit(main())
