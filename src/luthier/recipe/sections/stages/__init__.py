"""The stages, a file a family: what is learnt, and the settings of its loss."""
