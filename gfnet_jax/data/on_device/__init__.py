"""Augmentation and normalisation of whole batches, on the devices."""
