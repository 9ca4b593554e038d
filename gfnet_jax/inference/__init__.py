"""What a saved model is for: predictions and evaluations."""
