"""Evaluation: what a fine-tune has gained and what it has forgotten, base and tuned beside each other, with intervals."""
