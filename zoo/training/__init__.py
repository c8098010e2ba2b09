"""Shared parts of the recipes: arguments, the loop, optimisers, distributed helpers, contrastive parts, evaluation."""
