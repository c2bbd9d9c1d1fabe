"""Watch one forward: what is measured, where, and what the numbers hint at."""
