"""Folders of the project, and of the paper authors' stored runs where they are present."""

from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
TESTS, TRAINERS, BENCHMARKS = ROOT / "tests", ROOT / "trainers", ROOT / "benchmarks"
SHARED_DATA = ROOT.parent / "shared" / "data" / "seal"
