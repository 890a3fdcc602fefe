"""Chat templates: messages become text, and the text knows which of its characters are learnt.

- `render`: a Jinja template and messages → text, exactly as transformers renders them;
- `ChatTemplate`: a template with its variables; `.render` for asking, `.supervise` for learning (the mask ladder of `ladder.py`);
- `resolve`: from what a recipe says (`auto`, a family's name, a file) to a `ChatTemplate`.
"""

from __future__ import annotations

from luthier.chat.families import Family, families
from luthier.chat.ladder import Rendered
from luthier.chat.render import TemplateRefused, render
from luthier.chat.template import ChatTemplate, resolve

__all__ = ["ChatTemplate", "Family", "Rendered", "TemplateRefused", "families", "render", "resolve"]
