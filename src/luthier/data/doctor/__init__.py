"""The doctor: every row of a file looked at before anything is spent on learning it.

Bad data is the most frequent cause of fine-tunes that fail, and most of it can be seen without a model: rows that do not parse,
empty answers, conversations that begin with an answer, placeholders that nobody filled in, the same row a hundred times, rows of the
validation file in the training file. `examine` reads a file as training does and yields a `Finding` for each problem, as it goes: its
memory does not grow with what is wrong.

Each kind of problem is one line of the table in `kinds`, and one small function or class that finds it:

| module | finds |
|---|---|
| `structure` | what the reader or the format refuses: broken JSON, wrong types, missing fields, the order of roles |
| `texts` | in any text of a row: damaged encoding, odd characters, placeholders, secrets, addresses, numbers |
| `turns` | in a conversation: empty answers, dummy text, tool calls without a result, one language asked and another answered |
| `alike` | between rows: duplicates, near-duplicates, what is in the validation file too |
| `tokens` | with a template and a model: too long, nothing supervised |

`mend` writes a cleaned copy, `summary` prints, `page` makes the report in HTML.
"""

from luthier.data.doctor.examine import Examination, Options, examine
from luthier.data.doctor.kinds import KINDS, Finding, Kind

__all__ = ["KINDS", "Examination", "Finding", "Kind", "Options", "examine"]
