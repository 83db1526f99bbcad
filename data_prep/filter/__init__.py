"""`data_prep filter`: COYO's rows to those worth a download.

Three stages, each of which a killed run takes up where it left off. `scan` reads the input once and
keeps the rows that pass every rule which needs no other row. `verdict` ranks these by CLIP
similarity and finds repeated URLs and images. `write` puts what is left into parquet files.
"""
