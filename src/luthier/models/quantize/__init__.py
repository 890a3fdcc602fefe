"""Frozen weights in few bits.

Training an adapter needs the base weights only to multiply with them. Rounded to 4 bits in blocks that share a scale, they take a
quarter of the memory of 16 bits, and what rounding has lost the adapter learns to make up for in part (QLoRA, Dettmers et al.
2023, arXiv:2305.14314).

* `scheme`: what a recipe asks for, worked out: library, numbers, types; one layer at a time.
* `base`: which layers of a model are quantised, checks before anything is loaded, what it saves.
* `packed`: folders that GPTQ or AWQ has quantised, unpacked by a few lines of torch on any device.

The layers themselves are the libraries' own or `luthier.models.linear.QuantisedLinear`.
"""
