"""A small world of coloured shapes to learn in: its scenes, questions, tokenizer and base checkpoint."""
