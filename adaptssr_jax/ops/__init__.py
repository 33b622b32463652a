"""Array operations that losses and objectives share."""
