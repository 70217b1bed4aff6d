"""Adapter files held against a base: export, and verification."""
