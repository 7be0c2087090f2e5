"""Checks of the rows that go into a model, one subject a file: values, columns, labels, tags."""
