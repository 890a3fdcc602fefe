"""Low-rank adapters of our own over any linear layer, in PEFT's file format."""
