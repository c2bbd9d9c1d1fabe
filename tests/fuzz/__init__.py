"""Mutants of every kind of file that is read, and kills at every moment that something is written."""
