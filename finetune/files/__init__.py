"""Adapter files: names, layouts, metadata. No base is opened here."""
