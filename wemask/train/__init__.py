"""Model + operator + PEFT + TRL's SFTTrainer, in a run folder that resumes.

`training.py` first: it prepares (`prepare.py`), fits, monitors (`monitoring.py`) and saves. May
import `checkpoint` and the rooms below it.
"""
