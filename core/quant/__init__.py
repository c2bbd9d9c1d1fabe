"""Quant types: one table, their decoders and their rounding."""
