"""Embeds the units of a cohort on a Ray cluster: actors, each with a network, and the rows come back to this process."""
