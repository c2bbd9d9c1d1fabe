"""Settings of every test run: threads that wait do not spin, as in the command; GPU kernels run in the interpreter."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported


def pytest_configure(config):
    """Let Triton interpret its kernels on the CPU, but where the tests for a GPU are asked for."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported
