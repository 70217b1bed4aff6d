"""Masks by a model, a program or the colour of the background, for the pictures of a dataset that have none."""
