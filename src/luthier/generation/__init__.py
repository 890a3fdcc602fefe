"""Writing answers: decoding with a key-value cache, sampling, stop strings, and a model one can talk to."""
