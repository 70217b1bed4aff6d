"""The run: batches, loop, checkpoints, and the procedure from a recipe to a proved file."""
