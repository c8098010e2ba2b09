"""The families of the zoo, one folder each."""
