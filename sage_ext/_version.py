"""The one place that holds the version number. The build reads it from here and imports nothing else."""

__version__ = "0.1.0"
