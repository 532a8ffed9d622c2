"""From files to batches, on the host alone: rows, prompts, images, packing. Loads no JAX."""
