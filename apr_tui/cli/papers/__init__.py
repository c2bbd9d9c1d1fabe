"""Pages made from the command tables: the guide, the manual page, the completion of a shell."""
