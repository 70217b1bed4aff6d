"""Picture files: what they are, decoded, measured and cut to size."""
