"""What the weights of two files say of each other: rounding or not, and in words what the difference is."""
