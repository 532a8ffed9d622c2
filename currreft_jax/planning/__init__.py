"""Will it fit, how fast: the programs of training, compiled ahead of time for devices that need not be there."""
