"""The parts of a reinforcement stage beside those that every run has: who writes answers, who judges them, who expects what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from luthier.data.batch import GlobalBatches
from luthier.data.loader import Batches
from luthier.engine.estimates import CriticEstimate, GroupEstimate, Scorer
from luthier.engine.pairs import HeldOutPairs, PairEstimate
from luthier.engine.parallel import World
from luthier.engine.plan import Plan
from luthier.engine.reference import Reference
from luthier.engine.rollout import Estimate, Reinforcement, Rollouts, Writer
from luthier.generation.chat import ChatModel
from luthier.generation.sampling import Decoding
from luthier.models.critic import ValueCritic
from luthier.models.policy import Policy
from luthier.objectives import objective_of
from luthier.objectives.rewards import digest_of, judge_of
from luthier.recipe.schema import GRPO, PPO, VLLM, Distillation, OnlineDPO, Recipe, Rollout
from luthier.workshop.watching import Watchers
from luthier.workshop.writers import Followed, PolicyWriter, ServedWriter


def learns_from_itself(recipe: Recipe) -> bool:
    """Whether the stage learns from the policy's own answers."""
    return isinstance(recipe.stage, Rollout)


def steps_each(recipe: Recipe) -> int:
    """Optimizer steps for each draw of the data: those that share a rollout, else 1."""
    stage = recipe.stage
    return stage.mini_batches * stage.passes if isinstance(stage, Rollout) else 1


def answer_room(recipe: Recipe) -> int:
    """Most tokens that an answer adds to a row of the data."""
    stage = recipe.stage
    writes = isinstance(stage, Rollout) or (isinstance(stage, Distillation) and stage.on_policy > 0)
    return stage.max_new_tokens if writes else 0  # type: ignore[union-attr]


def keeps_distance(recipe: Recipe) -> bool:
    """Whether the distance from the reference is part of what is learnt."""
    return isinstance(recipe.stage, GRPO | PPO) and recipe.stage.beta > 0


def prepare_policy(recipe: Recipe, policy: Policy) -> ValueCritic | None:
    """Give the policy what its stage asks for: the temperature of its samples, and a critic, which is returned."""
    stage = recipe.stage
    if isinstance(stage, Rollout):
        policy.temperature = stage.temperature
    if not isinstance(stage, PPO):
        return None
    policy.critic = critic = ValueCritic(policy, own_model=stage.critic == "model")
    return critic


def critic_rates(recipe: Recipe, critic: ValueCritic | None) -> dict[str, float]:
    """Learning rates of the critic's parameters, as multiples of the recipe's."""
    if critic is None or not isinstance(recipe.stage, PPO) or recipe.stage.critic_learning_rate is None:
        return {}
    return dict.fromkeys(critic.parameters, recipe.stage.critic_learning_rate / recipe.train.learning_rate)


def rollouts_of(
    recipe: Recipe,
    prompts: Batches,
    policy: Policy,
    chat: ChatModel,
    reference: Reference | None,
    plan: Plan,
    world: World,
    watchers: Watchers,
) -> Rollouts:
    """What every step of a reinforcement stage learns from.

    Raises:
        UserError: a reward cannot be made, or a server that is to write does not answer.
    """
    stage = recipe.stage
    assert isinstance(stage, GRPO | PPO | OnlineDPO)
    assert isinstance(prompts, GlobalBatches)
    sampling = {"temperature": stage.temperature, "top_p": stage.top_p, "top_k": stage.top_k}
    settings = chat.decoding(max_new_tokens=stage.max_new_tokens, seed=recipe.train.seed, **sampling)
    texts = tuple(text for text in settings.stop_strings if len(chat.tokenizer.encode(text).ids) > 1)
    settings = replace(settings, stop_strings=texts)  # what is one token ends an answer as a token, and costs no decoding
    write = _writers(stage, policy, chat, world)
    scorer = Scorer(policy, reference, plan.micro_batch_tokens, plan.packing, world)
    return Rollouts(
        prompts=prompts,
        stage=stage,
        seed=recipe.train.seed,
        writer=write(settings, stage.answers),
        examined=write(replace(settings, temperature=0.0), 1),
        judge=judge_of(stage.rewards),
        estimate=_estimate(stage, scorer),
        world=world,
        rewards=digest_of(stage.rewards),
        held_out=HeldOutPairs(stage.margin, objective_of(stage), scorer) if isinstance(stage, OnlineDPO) else None,
        spare_idle=isinstance(stage, GRPO) and not (stage.beta and stage.kl_in == "loss") and not recipe.train.router_aux_loss,
        note=watchers.note,
        tell=watchers.sampled,
    )


def _estimate(stage: Reinforcement, scorer: Scorer) -> Estimate:
    """What turns judged answers into what the stage's objective reads."""
    if isinstance(stage, PPO):
        return CriticEstimate(stage, scorer)
    return PairEstimate(stage, scorer) if isinstance(stage, OnlineDPO) else GroupEstimate(stage, scorer)


def _writers(stage: Rollout, policy: Policy, chat: ChatModel, world: World) -> Callable[[Decoding, int], Writer]:
    """What makes a writer of so many answers to each prompt."""
    if isinstance(stage.writer, VLLM):
        followed = Followed(stage.writer, policy, world)
        return lambda settings, answers: ServedWriter(followed, chat.tokenizer, settings, answers)
    return lambda settings, answers: PolicyWriter(policy.model, chat.tokenizer, settings, answers, stage.rows)
