"""Licences of pictures, whose they are, and what they may be used for."""
