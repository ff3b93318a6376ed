"""One module an experiment, named like it and holding it as `EXPERIMENT`; the registry finds them by file name."""
