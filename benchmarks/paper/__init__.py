"""The paper's comparison in miniature: arms of equal budget, seeds, intervals, and a verdict on each claim."""
