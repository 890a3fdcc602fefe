"""What leaves the workshop: merged models in the formats that others read."""
