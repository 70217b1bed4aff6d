"""The independent judge of generated pictures, what trains it, and its weights."""
