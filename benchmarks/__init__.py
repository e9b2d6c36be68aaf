"""What deepprop takes in time and memory beside other libraries: `python -m benchmarks`."""
