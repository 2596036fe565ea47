"""A run that is written by hand."""

import pytest

from helpers.reported_runs import EVALUATIONS, TRAINING, selected, write_evaluations
from seal_hf.records.journal import Journal


@pytest.fixture
def run(tmp_path):
    """A run of one training round with three evaluations."""
    journal = Journal(tmp_path)
    journal.write_scored(0, TRAINING)
    journal.write_selected(0, [selected(TRAINING[0]), selected(TRAINING[2])])
    write_evaluations(tmp_path, EVALUATIONS)
    return tmp_path
