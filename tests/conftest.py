"""Settings of every test run: threads that wait do not spin, for the machine has few cores and lanes change their count."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported
