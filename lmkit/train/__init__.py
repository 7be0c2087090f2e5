"""Training: one loop for pretraining and fine-tuning alike."""
