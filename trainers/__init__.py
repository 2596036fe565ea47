"""The scripts, which run from a clone: `python -m trainers.demo`, `evaluate` and `knowledge`."""
