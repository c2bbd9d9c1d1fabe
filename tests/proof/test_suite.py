"""A sample of the planted-fault suite (tests/suite.py); the whole of it is `python -m tests.suite`, two minutes."""

from __future__ import annotations

import pytest

from tests.families_suite import GOOD as SEEN
from tests.families_suite import run_suite as run_families
from tests.suite import GOOD, run_suite


@pytest.mark.parametrize("sample", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_a_sample_of_planted_faults_is_located_and_clean_pairs_are_not_accused(sample):
    counts = run_suite(sample)
    assert set(counts) <= GOOD, counts
    assert sum(counts.values()) == 3 * sample
    assert counts["value faults", "LOCATED"] >= sample - 1, counts


def test_a_sample_of_faults_is_named_in_each_mixer_and_router():
    found = run_families(("deepseek2", "qwen35moe", "mamba", "mamba2", "lfm2"), sample=2)
    assert len(found) == 10, found
    assert all(counts["NAMED"] >= 1 and set(counts) <= set(SEEN) for counts in found.values()), found
