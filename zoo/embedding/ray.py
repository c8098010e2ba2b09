"""Embeds the units of a cohort on a Ray cluster."""
