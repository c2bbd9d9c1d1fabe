"""Settings of every test run: threads few and idle while they wait, as in the command; GPU kernels interpreted."""

import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores; what holds at any thread count asks for it


def pytest_configure(config):
    """Let Triton interpret its kernels on the CPU, but where the tests for a GPU are asked for."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """One worker more than cores: the screens' tests wait for much of their time."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1
