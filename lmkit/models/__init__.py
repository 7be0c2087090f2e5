"""Models and tokenizers: the home of transformers' Auto classes and of PEFT."""
