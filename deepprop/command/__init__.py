"""The command line: `deepprop train`, `predict`, `export` and `check`."""
