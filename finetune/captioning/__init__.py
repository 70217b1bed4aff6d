"""Captions by a model: pictures in, sentences out, and into a dataset."""
