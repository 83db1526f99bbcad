"""The method of the paper: divergences, ratio, losses, and the two steps."""
