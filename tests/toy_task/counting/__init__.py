"""Count the words of a text: a task that lmkit does not know."""
