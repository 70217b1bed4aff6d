"""Stands in for torchvision where it has no build: what the peers' scripts use of its transforms, on Pillow."""

__version__ = "0.0"
