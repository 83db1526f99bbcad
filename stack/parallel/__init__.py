"""How trained networks are laid over processes."""
