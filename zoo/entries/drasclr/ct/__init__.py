"""Steps from a chest CT to patches at the landmarks of an atlas, for `zoo.entries.drasclr.preprocess`."""
