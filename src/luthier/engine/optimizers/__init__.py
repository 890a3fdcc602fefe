"""The optimizers: one small file each, all behind one registry.

The update rules are those of maintained libraries (torch, transformers, bitsandbytes, adam-mini, galore-torch, apollo-torch,
schedulefree), used as they are; a file here says how the recipe's options become a library's arguments, and which parameters it is
for. What surrounds an update is Luthier's and the same for all: float32 masters (`engine.masters`), groups (`engine.groups`),
clipping, steps that must change nothing (`engine.optim`), and a state that can be saved and taken up bit for bit
(`engine.optimizers.state`).
"""

from luthier.engine.optimizers.registry import Kind, Rule, kind_of

__all__ = ["Kind", "Rule", "kind_of"]
