"""Fused operations, each registered as a torch op and defined by a plain twin that tests hold it to."""
