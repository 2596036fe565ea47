"""
Answer graders, and a report of how far the local one agrees with stored verdicts.

```bash
python -m seal_hf.grading RUN.json [RUN2.json ...] --passages 0:25
```

Both graders say whether an answer conveys the gold answer, or one of several: [`LexicalGrader`] compares the words of what
an answer says first on this machine and needs no key, [`JudgeGrader`] asks a language model. A verdict of `None` means
"could not be graded" and must never count as wrong: pass verdicts through [`require_verdicts`] before averaging them.
"""

from .golds import gold_answers, show_gold_answers
from .judge import GradingIncomplete, JudgeGrader, require_verdicts
from .judge_client import JudgeRefused
from .lexical import LexicalGrader
from .rubric import RubricJudge
from .statements import is_short


__all__ = [
    "GradingIncomplete",
    "JudgeGrader",
    "JudgeRefused",
    "LexicalGrader",
    "RubricJudge",
    "gold_answers",
    "is_short",
    "require_verdicts",
    "show_gold_answers",
]
