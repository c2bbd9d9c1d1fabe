"""Settings of every test run: threads that wait do not spin, as in the command; lanes change their count often."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported
