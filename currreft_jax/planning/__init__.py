"""Compiles the programs of training ahead of time, for devices that need not be attached: memory and speed."""
