"""The report: ``docs/results.md`` and its pictures, from the results of all studies and nothing else."""
