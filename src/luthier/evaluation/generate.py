"""Answers to the prompts of a data file, written greedily in the model's chat template, and compared with the file's own."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data.examples import Conversation, Example, Feedback, Message, Preference, Prompt
from luthier.errors import UserError
from luthier.evaluation.examinee import Examinee
from luthier.evaluation.perplexity import examples_of
from luthier.evaluation.task import Outcome, Progress, counting
from luthier.evaluation.texts import measured, names_of
from luthier.evaluation.words import language_of
from luthier.objectives.rewards import Answer
from luthier.recipe.sections.tasks import GenerateTask


class Generate:
    """The task. Arguments are its settings."""

    def __init__(self, settings: GenerateTask) -> None:
        self.settings = settings
        self.measures = dict.fromkeys(names_of(settings), True)

    def examine(self, examinee: Examinee, progress: Progress) -> Outcome:
        """See `Task`."""
        settings = self.settings
        examples = examples_of(settings.path, settings.format, settings.columns, settings.limit)
        asked = [question_of(example, settings.system) for example in examples]
        prompts = [
            examinee.prompt(messages, getattr(example, "tools", None))
            for example, (messages, _) in zip(examples, asked, strict=True)
        ]
        decoding = examinee.decoding(max_new_tokens=settings.max_new_tokens, temperature=settings.temperature)
        said, cut = examinee.answers(prompts, decoding, done=counting(progress, settings.title()))
        answers = [
            Answer(tuple(messages), one.text.strip(), reference, len(one.tokens), one.finished, origin=str(example.origin))
            for example, (messages, reference), one in zip(examples, asked, said, strict=True)
        ]
        language = language_of([answer.reference or answer.text for answer in answers])
        measures, notes = measured(settings, answers, language if settings.language == "auto" else settings.language)
        if cut:
            notes.append(f"{cut:,} of {len(prompts):,} prompts are longer than the model reads and lost their beginning")
        if unfinished := sum(not answer.finished for answer in answers):
            notes.append(f"{unfinished:,} of {len(answers):,} answers did not end within {settings.max_new_tokens} tokens")
        return Outcome(measures, [told(answer) for answer in answers], notes, {"rows": len(answers)})


def question_of(example: Example, system: str = "") -> tuple[Sequence[Message], str | None]:
    """What is asked, and the answer that the data gives, if any.

    Raises:
        UserError: the example is a text, or its last message is no answer.
    """
    reference = None
    if isinstance(example, Prompt):
        messages, reference = example.messages, example.reference
    elif isinstance(example, Preference):
        messages, reference = example.prompt, str(example.chosen[-1].get("content") or "")
    elif isinstance(example, Conversation | Feedback) and example.messages[-1]["role"] == "assistant":
        messages, reference = example.messages[:-1], str(example.messages[-1].get("content") or "")
    else:
        raise UserError(
            "the row has no answer to compare with", where=str(example.origin), hint="Texts are for a task of type `perplexity`."
        )
    bare = system and messages and messages[0]["role"] != "system"
    return ((*([{"role": "system", "content": system}] if bare else []), *messages)), reference


def told(answer: Answer) -> dict[str, object]:
    """An answer as plain data."""
    return {
        "origin": answer.origin,
        "question": str(answer.messages[-1].get("content") or "") if answer.messages else "",
        "answer": answer.text,
        "reference": answer.reference,
    }


def build(settings: GenerateTask) -> Generate:
    """The task of these settings."""
    return Generate(settings)
