"""How good generated pictures are: features, distances between distributions, diversity, speed."""
