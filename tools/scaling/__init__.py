"""Expected speed of training on Ascends, on paper."""
