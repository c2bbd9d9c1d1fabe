"""What is selected and visible."""
