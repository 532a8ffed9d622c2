"""Published benchmarks: loaders of their files, prompts, scorers, judge prompts and aggregates. Loads no JAX."""
