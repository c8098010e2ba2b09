"""From a CT of the chest to patches at the landmarks of an atlas; steps of `zoo.entries.drasclr.preprocess`."""
