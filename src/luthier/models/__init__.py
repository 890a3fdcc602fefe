"""Models: fetched, loaded, made trainable, and seen as a policy (hidden states, head, trained parameters)."""
