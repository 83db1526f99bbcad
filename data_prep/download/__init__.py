"""From rows with URLs to shards of pictures: `data_prep download`.

turns.py          which thread fetches which row next, never too many from one host
fetch.py          one URL, one request at a time, to bytes or to the reason why not
connections.py    sockets that keep a deadline and refuse private addresses
robots.py         what a site allows
picture.py        bytes from anyone to a square picture, or to the reason why not
crew.py           threads that do both, and the results in order
rows.py           rows of the input
ledger.py         what became of every row
run.py            all of it, a shard at a time
"""
