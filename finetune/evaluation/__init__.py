"""What was learnt, and how like the pictures are."""
