"""Records to lines of text; no Textual."""
