"""A task of one's own: reading gauges. `docs/new_task.md` explains it line by line."""
