"""`python -m seal_hf.grading`."""

from .report import main


main()
