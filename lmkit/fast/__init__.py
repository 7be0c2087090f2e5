"""How a model is computed faster, never what it computes; above `models/`."""
