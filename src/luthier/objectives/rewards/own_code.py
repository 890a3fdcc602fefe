"""A reward that is a function of your own: `python: rewards.py:polite`.

```python
def polite(answers):
    return [float("please" in answer.text.lower()) for answer in answers]
```

It is called once for each rollout, with the list of its answers (`luthier.objectives.rewards.Answer`), and returns one number for each;
None, NaN or an exception is a bad reward. It runs inside the training process, with all that this process may do: only a file that the
recipe names is run, and its content is part of what a run is identified by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from luthier.data.python_source import imported, told
from luthier.objectives.rewards.base import Answer, Bad
from luthier.recipe.sections.rewards import OwnCode


class OwnCodeReward:
    """Calls the function.

    Raises:
        UserError: there is no such file or function, or the file fails when it is run.
    """

    def __init__(self, settings: OwnCode) -> None:
        self.file, self.function = imported(settings.python)

    def __call__(self, answers: Sequence[Answer]) -> list[Any]:
        """What the function gives; all are bad if it raises or gives no list."""
        try:
            given = self.function(list(answers))
            return (
                list(given)
                if isinstance(given, Iterable)
                else [Bad(f"gives a {type(given).__name__}, not a list")] * len(answers)
            )
        except Exception as error:  # whatever the user's code raises
            return [Bad(str(told(error, self.file)))] * len(answers)


def build(settings: OwnCode) -> OwnCodeReward:
    """The reward of these settings."""
    return OwnCodeReward(settings)
