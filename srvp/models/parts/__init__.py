"""What models are made of: networks and layers, shared or too long for a model's own file."""
