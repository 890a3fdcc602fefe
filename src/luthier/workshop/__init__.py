"""The workshop: where a recipe meets data, model, engine and run folder.

    import luthier

    run = luthier.train("recipe.yaml", overrides=["train.learning_rate=2e-4"], name="first")
    run = luthier.resume("first")
    print(luthier.load("first").chat("你是谁？"))

Everything below this room knows nothing of the others beside it; everything above it (the command line, the studio) only calls these
functions.
"""

from luthier.workshop.loading import change_adapter, load, load_chat, load_speaker
from luthier.workshop.run import Run
from luthier.workshop.training import resume, train

__all__ = ["Run", "change_adapter", "load", "load_chat", "load_speaker", "resume", "train"]
