"""All that a run will do, known before anything heavy is loaded."""
