"""The embedded world of coloured shapes: scenes, questions, pretraining tasks, tokenizer and base checkpoint."""
