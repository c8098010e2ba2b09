"""Cells of a volume, and a probe of their features, for the maps of `zoo.entries.drasclr.dense`."""
