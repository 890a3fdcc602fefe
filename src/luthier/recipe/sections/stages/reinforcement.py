"""Stages that learn from the model's own answers and what rewards say of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from luthier.recipe.sections.base import Above, Positive, Section, Share, Weight
from luthier.recipe.sections.optimizer import Rate
from luthier.recipe.sections.rewards import Rewards
from luthier.recipe.sections.stages.preference import Pairwise
from luthier.recipe.sections.writer import Writer

Clip = Annotated[float, Field(gt=0.0, lt=1.0)]

VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"scale": "none", "aggregate": "constant"},
    "dapo": {"clip_high": 0.28, "aggregate": "token", "resample": 3, "skip_cut": True},
    "gspo": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    "rloo": {
        "baseline": "leave_one_out",
        "scale": "none",
        "ratio": "trajectory",
        "beta": 0.05,
        "kl_in": "reward",
        "kl_estimator": "k1",
    },
    "reinforce++": {
        "baseline": "none",
        "scale": "whiten",
        "aggregate": "token",
        "beta": 0.01,
        "kl_in": "reward",
        "kl_estimator": "k1",
    },
    "reinforce++_baseline": {"scale": "whiten", "aggregate": "token", "beta": 0.01, "kl_estimator": "k2"},
}
"""Name of a relative of GRPO → the settings in which it differs."""


class Rollout(Section):
    """How answers are written and judged; what all these stages have in common."""

    rewards: Rewards
    """What an answer is worth: the name of a reward, a mapping with `type` and options, or a list of them, which are added up."""
    answers: Positive = 8
    """Answers to each prompt. A rollout has `train.batch_size` prompts."""
    max_new_tokens: Positive = 256
    """Longest answer in tokens, beside the prompt, whose limit is `data.max_length`."""
    temperature: Above = 1.0
    """Of the samples; it is the policy at this temperature that learns."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Sample from the smallest set of tokens that holds this probability. Below 1 the samples are no longer quite the policy's own."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from the k most likely tokens; 0 keeps all."""
    mini_batches: Positive = 1
    """Optimizer steps over which the answers of a rollout are spread."""
    passes: Positive = 1
    """How often the answers of a rollout are learnt from."""
    cut_penalty: Weight = 0.0
    """Taken off the reward of an answer that was cut at `max_new_tokens`."""
    rows: Positive = 128
    """Most answers that are written at once. Memory grows with it; the result does not depend on it."""
    show: Annotated[int, Field(ge=0)] = 2
    """Answers of each rollout that are kept in `samples.jsonl`, with their rewards."""
    writer: Writer = "torch"
    """Who writes the answers: the training model itself (`torch`), or a server: `{type: vllm, url: …}`."""


class PolicyGradient(Rollout):
    """Rollouts whose tokens are weighed by how probable they were; they can be corrected where another program sampled them."""

    importance_cap: Above | None = None
    """Weigh tokens by how much likelier the trainer finds them than the sampler did, at most so much. With `writer: vllm` 2, else none."""

    @model_validator(mode="before")
    @classmethod
    def _corrected(cls, value: Any) -> Any:
        foreign = isinstance(value, dict) and value.get("writer", "torch") != "torch"
        return {"importance_cap": 2.0, **value} if foreign else value


class GRPO(PolicyGradient):
    """Learn from the model's own answers, each compared with the others to the same prompt (Group Relative Policy Optimization)."""

    type: Literal["grpo"] = "grpo"
    variant: Literal["grpo", "dr_grpo", "dapo", "gspo", "rloo", "reinforce++", "reinforce++_baseline"] = "grpo"
    """Which relative: it sets the defaults of the fields below, from `baseline` on."""
    baseline: Literal["group", "leave_one_out", "none"] = "group"
    """What a reward is compared with: the mean of its group, the mean of the others in it, or nothing."""
    scale: Literal["group", "batch", "whiten", "none"] = "group"
    """What the difference is divided by: the standard deviation in its group, in the batch, or over all tokens (`whiten`)."""
    ratio: Literal["token", "sequence", "trajectory"] = "token"
    """Importance ratio: of each token, their geometric mean over an answer, or the product of them all."""
    aggregate: Literal["sequence", "token", "constant"] = "sequence"
    """How tokens become a loss: mean over tokens, then answers; mean over all tokens; sum over `max_new_tokens` (Dr. GRPO)."""
    clip_low: Clip = 0.2
    """How far the ratio may fall before it stops to matter."""
    clip_high: Above = 0.2
    """How far the ratio may rise before it stops to matter."""
    clip_ceiling: Above | None = None
    """Largest ratio at all, also where an answer is worse than expected (dual clip)."""
    beta: Weight = 0.0
    """Weight of the distance (KL divergence) from the model at the start; 0 needs no reference."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether the distance is a term of the loss or is taken off the reward."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """How the distance is estimated from the sampled tokens."""
    kl_weighted: bool = True
    """Weigh the distance in the loss by the importance ratio, which makes its gradient unbiased."""
    resample: Annotated[int, Field(ge=0)] = 0
    """How often other prompts are drawn in place of those whose answers all earn the same (dynamic sampling)."""
    skip_cut: bool = False
    """Do not learn from answers that were cut at `max_new_tokens`."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_variant(cls, value: Any) -> Any:
        chosen = value.get("variant", "grpo") if isinstance(value, dict) else None
        return {**VARIANTS[chosen], **value} if chosen in VARIANTS else value

    @model_validator(mode="after")
    def _makes_sense(self) -> GRPO:
        if self.baseline != "none" and self.answers < 2:
            raise ValueError("`stage.answers` should be at least 2: an answer alone has nothing to be compared with")
        if self.kl_in == "loss" and self.kl_estimator == "k1" and not self.kl_weighted and self.beta:
            raise ValueError("`stage.kl_estimator: k1` teaches nothing in the loss unless `kl_weighted`: use `k2` or `k3`")
        return self


class PPO(PolicyGradient):
    """Learn from the model's own answers, with a critic that says what to expect (Proximal Policy Optimization)."""

    type: Literal["ppo"] = "ppo"
    answers: Positive = 1
    """Answers to each prompt. A rollout has `train.batch_size` prompts."""
    passes: Positive = 4
    """How often the answers of a rollout are learnt from."""
    gamma: Share = 1.0
    """Discount of what the next token earns."""
    lam: Share = 0.95
    """λ of the advantages: 1 trusts what was earned, 0 the critic."""
    clip: Clip = 0.2
    """How far the ratio of probabilities may move from 1 before it stops to matter."""
    clip_value: Above | None = 0.2
    """How far the critic may move from what it said when the answers were written; null is no limit."""
    value_weight: Weight = 0.1
    """Weight of the critic's loss."""
    beta: Weight = 0.05
    """Weight of the distance (KL divergence) from the model at the start, which is taken off the reward."""
    kl_target: Above | None = None
    """Distance of an answer, in nats, that `beta` is steered to; null keeps `beta` as it is."""
    kl_horizon: Positive = 10_000
    """Answers after which `beta` has changed by a fifth, as long as the distance is far off."""
    whiten_rewards: bool = False
    """Scale the rewards of tokens to variance 1; their mean stays."""
    whiten_advantages: bool = True
    """Scale advantages to mean 0 and variance 1 over the tokens of a rollout."""
    critic: Literal["head", "model"] = "head"
    """A head on the policy, or a model of its own, which takes the memory of its trained weights once more."""
    critic_learning_rate: Rate | None = None
    """Peak learning rate of the critic's head and, where it is a model, of that. Default: `train.learning_rate`."""


class OnlineDPO(Rollout, Pairwise):
    """Learn from pairs of the model's own answers, the best and the worst to each prompt as the rewards have it (Online DPO)."""

    type: Literal["online_dpo"] = "online_dpo"
    answers: Annotated[int, Field(ge=2)] = 4
    """Answers to each prompt. A rollout has `train.batch_size` prompts."""
    margin: Weight = 0.0
    """By how much the better answer's reward has to exceed the worse one's; of prompts whose answers are closer nothing is learnt."""
