"""Task files: one of four prompts, and the head of others, which lack their data."""

from __future__ import annotations

TASK = """
name: mine
version: 1
source: a test
description: a then b
defaults: {metric: kl, threshold: 0.01, examples: 2}
metrics: [kl, logit-diff]
data:
  rows:
    - {clean: "a b a", corrupted: "b b a", correct: " b", wrong: " a"}
    - {clean: "a a b", corrupted: "a b b", correct: " a", wrong: " b"}
    - {clean: "b b a", corrupted: "a b a", correct: " a", wrong: " b"}
    - {clean: "b a a", corrupted: "b b b", correct: " a", wrong: " b"}
"""

HEAD = """
version: 1
source: a test
description: a test
defaults: {metric: kl, threshold: 0.1, examples: 1}
metrics: [kl]
"""
