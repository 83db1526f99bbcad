"""What each verb takes, a file for each kind of verb. A verb's module is imported when the verb
runs."""

from __future__ import annotations

from data_prep.verbs.convert import add_captions, add_latents
from data_prep.verbs.look import add_bench, add_stats, add_verify
from data_prep.verbs.make import add_cifar10, add_digits, add_imagenet64, add_import, add_shards
from data_prep.verbs.web import add_download, add_filter, add_forget, add_merge

VERBS = (
    add_filter,
    add_download,
    add_import,
    add_shards,
    add_digits,
    add_cifar10,
    add_imagenet64,
    add_latents,
    add_captions,
    add_merge,
    add_stats,
    add_verify,
    add_forget,
    add_bench,
)
