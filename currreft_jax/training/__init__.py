"""GRPO and supervised fine-tuning through the stages of a curriculum."""
