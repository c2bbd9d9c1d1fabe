"""Settings of every test run: threads few and idle while they wait, as in the command; GPU kernels interpreted."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# What a test of `pytest -m quick` lies in: together some 15 seconds of one core, measured alone (--durations=0).
QUICK = (
    "system/", "quant/", "formats/", "text/test_tokenizer.py", "trace/", "proof/test_contract_gates.py",
    "sources/test_import",
    "train/test_train_config.py", "train/test_train_gates.py", "cli/test_safe_text.py", "test_floors.py",
)

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported
os.environ.setdefault("APR_TUI_NO_FSYNC", "1")  # what a power cut would leave: test_power.py looks with the switch off
os.environ["XDG_CONFIG_HOME"] = f"{os.devnull}/none"  # a developer's own settings change no test, and none are written
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores; what holds at any thread count asks for it


def pytest_configure(config):
    """Let Triton interpret its kernels on the CPU, but where the tests for a GPU are asked for."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported


def _is_quick(path):
    """Whether a file, or a folder of some, belongs to the edit loop."""
    name = path.relative_to(HERE).as_posix() if path.is_relative_to(HERE) else "."
    return name == "." or any(name.startswith(row) or row.startswith(f"{name}/") for row in QUICK)


def pytest_ignore_collect(collection_path, config):
    """Do not import what -m quick leaves out: it takes longer than the tests."""
    return True if config.option.markexpr == "quick" and not _is_quick(collection_path) else None


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Mark the tests of the edit loop."""
    for item in items:
        if _is_quick(item.path) and not (item.get_closest_marker("slow") or item.get_closest_marker("gpu")):
            item.add_marker("quick")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """One worker more than cores: the screens' tests wait for much of their time. Quick ones do not."""
    n_core = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return n_core + (config.option.markexpr != "quick")
