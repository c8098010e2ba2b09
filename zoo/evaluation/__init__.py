"""Evidence from features: what an encoder is worth on a user's own labels, and what it may have seen before."""
