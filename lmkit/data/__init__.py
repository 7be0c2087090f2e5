"""Files to the batches of a step: sources, check, tags, encode, plan."""
