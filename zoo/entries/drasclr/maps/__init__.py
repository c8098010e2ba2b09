"""What patches say of each place in a volume: cells, and a probe of their features; for `zoo.entries.drasclr.dense`."""
