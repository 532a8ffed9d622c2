"""The curves and the completions of a run as one page that needs no server, no network and nothing installed."""
