"""Arms through lm-eval, every item's result kept.

`evaluation.py` asks one arm; `arms.py` says what each arm is, `arm_run.py` loads it; `harness.py`
is our model behind lm-eval's interface; `tasks/` and `scoring/` say what is asked and what is
right. May import `train` and the rooms below it.
"""
