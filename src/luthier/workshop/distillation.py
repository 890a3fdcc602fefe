"""The teacher of a distillation, found, checked and loaded; and the student's own answers, where the stage asks for them."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data.loader import Batches
from luthier.data.tokenizer import Tokenizer, load_tokenizer
from luthier.engine.on_policy import OwnAnswers
from luthier.engine.parallel import World
from luthier.errors import UserError
from luthier.generation.bulk import Written, write_answers
from luthier.generation.chat import ChatModel
from luthier.models.hub import fetch
from luthier.models.loading import load_model
from luthier.models.methods import load_adapter
from luthier.models.policy import Policy
from luthier.models.source import tokenizer_folder
from luthier.models.teacher import FrozenTeacher
from luthier.recipe.schema import Distillation, Model, Recipe

SAMPLE = "The luthier tunes 3 strings, then 12 more.\n琴匠调好了三根弦，再来十二根。 def f(x): return x**2  # naïve"
"""A text of many kinds of characters: tokenizers that give it the same ids count as one."""


def teach(recipe: Recipe, policy: Policy, tokenizer: Tokenizer) -> None:
    """Give the policy its teacher, where the stage has one.

    Raises:
        UserError: there is no such model, or its tokens are not the student's.
    """
    stage = recipe.stage
    if not isinstance(stage, Distillation):
        return
    section = Model(**stage.teacher.model_dump(exclude={"adapter"}))
    if load_tokenizer(tokenizer_folder(section)).encode(SAMPLE).ids.tolist() != tokenizer.encode(SAMPLE).ids.tolist():
        raise UserError(
            f"`{section.path}` has another tokenizer than the student, so their distributions are over different tokens",
            where="stage.teacher",
            hint="Choose a teacher of the student's family, or learn from its answers with `stage: sft`.",
        )
    model = load_model(section, dtype=policy.dtype, device=policy.device)
    if stage.teacher.adapter:
        load_adapter(model, fetch(stage.teacher.adapter, hub=section.hub))
    policy.teacher = FrozenTeacher(model, kind=stage.loss, beta=stage.beta, temperature=stage.temperature)


def own_answers(recipe: Recipe, data: Batches, policy: Policy, chat: ChatModel, world: World) -> OwnAnswers:
    """What an on-policy distillation learns from: the data, and in some steps the policy's own answers."""
    stage = recipe.stage
    assert isinstance(stage, Distillation)
    seed = recipe.train.seed
    settings = chat.decoding(max_new_tokens=stage.max_new_tokens, seed=seed, temperature=stage.sampling_temperature)

    def write(prompts: Sequence[Sequence[int]], first: int) -> list[Written]:
        return write_answers(policy.model, chat.tokenizer, prompts, settings, first=first)

    return OwnAnswers(data, stage.on_policy, seed, write, world)
