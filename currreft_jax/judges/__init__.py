"""Judges of answers: the rewards' rules, or a model at an OpenAI-compatible server. Loads no JAX."""
