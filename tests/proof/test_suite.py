"""A sample of the planted-fault suite (tests/suite.py); the whole of it is `python -m tests.suite`, two minutes."""

from __future__ import annotations

from tests.suite import GOOD, run_suite


def test_a_sample_of_planted_faults_is_located_and_clean_pairs_are_not_accused():
    counts = run_suite(sample=8)
    assert set(counts) <= GOOD, counts
    assert sum(counts.values()) == 24
    assert counts["value faults", "LOCATED"] >= 6, counts
