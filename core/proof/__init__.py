"""Model or bug: check, compare, bisect, reproduce."""
