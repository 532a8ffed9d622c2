"""The report of a run: curves, forgetting matrix and rollouts in one HTML page that needs no server and no network."""
