"""Products of panels in C++: rows of a weight side by side, times whole numbers or pairs of bfloat16."""
