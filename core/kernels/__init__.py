"""Compiled products and statistics: C++ for CPUs, Triton for GPUs."""
