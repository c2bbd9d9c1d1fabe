"""What a quantised file costs: KL over a text, each tensor's share of it, and what to raise for a budget."""
