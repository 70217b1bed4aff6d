"""Captions and prompts: where they come from, their wording, and how they vary."""
