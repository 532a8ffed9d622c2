"""Settings of runs; `get_config(variant)` of each file returns a `Config`."""
