"""Qwen2.5-VL in Flax. `config` and `folder` load no JAX."""
