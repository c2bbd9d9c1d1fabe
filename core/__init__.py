"""The library under apr-tui: from model bytes to evidence. It never prints."""
