"""Pages for people: a run's report, a comparison, a dataset, each one HTML file that needs nothing else."""
