"""Fused products of activations and stored weights, and statistics: C++ sources, their build and loading."""
