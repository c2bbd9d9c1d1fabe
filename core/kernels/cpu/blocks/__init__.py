"""Stored types in C++: how a block is read, and what is made of it."""
