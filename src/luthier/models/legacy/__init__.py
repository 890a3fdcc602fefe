"""Old checkpoints, published with code of their own that current transformers cannot run, as models of today's classes.

One small file a family says how its config is recognised, what the native config is, and which tensor goes where (`family.py`,
`mapping.py`). The rest is common to all: a checkpoint is converted once, tensor by tensor, into a native folder (`convert.py`) in a
cache that is keyed by content (`cache.py`), and the folder is then loaded like any other. No code of a repository is ever run.

`luthier.models.hub.fetch` hands on the native folder for an old one, so every command and recipe can name an old checkpoint.
"""
