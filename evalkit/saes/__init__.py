"""Sparse autoencoders: one canonical coder, loaders, floors, training, and the card that judges them."""
