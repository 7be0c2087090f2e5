"""What several commands do: train, evaluate, both of them for several seeds, in small, as a plan."""
