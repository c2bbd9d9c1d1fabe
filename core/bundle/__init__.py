"""A run as a folder that can be read again and diffed."""
