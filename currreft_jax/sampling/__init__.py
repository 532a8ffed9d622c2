"""The sampler: completions of prompts, for training, evaluation and programs."""
