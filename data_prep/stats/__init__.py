"""What is in a folder, and what became of the rows that are not: `data_prep stats`.

gather.py     all of it, as one dictionary
folders.py    the folders of shards, parts of a whole or one
rows.py       what their ledgers tell
samples.py    samples of the shards, evenly spread, and what they look like
funnel.py     from rows to samples, step by step
text.py       the numbers as text
page.py       the numbers as a page, with charts.py, sheet.py and style.py
"""

from data_prep.stats.gather import stats
from data_prep.stats.text import lines

__all__ = ["lines", "stats"]
