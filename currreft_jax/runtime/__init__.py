"""Devices, hosts, checkpoints, metrics and the run's folder; knows no model."""
