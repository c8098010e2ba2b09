"""Blocks that several entries build their networks with."""
