"""The fused product of float32 activations and stored quantised weights: C++ sources, their build and loading."""
