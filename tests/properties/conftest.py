"""Properties are held by the same few draws in every run, so that a failure is of the change that it came with."""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, database=None, max_examples=60, deadline=None)
settings.load_profile("repeatable")
