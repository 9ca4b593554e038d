"""Pictures of filters and of training runs."""
