"""The engine: one step loop, and the parts that it is made of."""
