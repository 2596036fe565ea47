"""`python -m seal_hf.grading`."""

from .agreement import main


main()
