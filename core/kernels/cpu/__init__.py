"""C++ kernels, how they are built and called."""
