"""What each verb takes: its arguments, and what runs it. A verb's module is imported when the
verb runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from stack.arguments.cluster import add_doctor, add_fetch, add_job, add_status
from stack.arguments.evaluation import add_evaluate, add_train_judge
from stack.arguments.figures import add_ablate, add_figures
from stack.arguments.runs import add_checkpoint, add_export, add_report, add_sample
from stack.arguments.tools import add_bench, add_import_edm, add_plan, add_show_config
from stack.arguments.training import add_distill, add_pretrain

Add = Callable[[argparse.ArgumentParser], Callable[[argparse.Namespace], int]]
VERBS: dict[str, tuple[str, str, Add]] = {
    "pretrain": (
        "train a teacher (text-to-image pipeline or EDM network)",
        "Train a teacher from shards and save it in OUT/teacher: a text-to-image pipeline of "
        "pictures and captions, or an EDM network of pictures and classes. Ctrl-C or SIGTERM saves "
        "the state and exits with status 85; --resume goes on.",
        add_pretrain,
    ),
    "distill": (
        "distil a teacher into a one-step student",
        "The main job. Ctrl-C, SIGTERM or SIGUSR1 finishes the iteration, saves the state and "
        "exits with status 85; --resume goes on, bit for bit as if nothing had happened.",
        add_distill,
    ),
    "evaluate": (
        "measure teacher and student side by side",
        "Generate pictures with the teacher and the student (one step) for the same conditions and "
        "noise, and print what the suite measures, each figure with its interval: on the digits "
        "Frechet distance, recall, precision, caption accuracy, mode coverage and images per "
        "second. Any number of ranks; what was made before a stop is not made again. Results: "
        "RUN/evaluation.json, and with other suites OUT/SUITE.json. See docs/evaluation.md.",
        add_evaluate,
    ),
    "train-judge": (
        "a classifier of labelled pictures, for evaluate --classifier",
        "Train a small ResNet on the pictures and classes of shards, print its accuracy on others "
        "and write a folder: features for Frechet distance and recall, and class accuracy.",
        add_train_judge,
    ),
    "sample": (
        "a grid of the teacher's pictures above the student's",
        "Same prompts, same noise: rows of the teacher above rows of the student, as one PNG.",
        add_sample,
    ),
    "export": (
        "the student as a folder of the teacher's kind",
        "Write the student (its average, where the recipe has one) as a pipeline folder that "
        "StableDiffusionPipeline.from_pretrained loads and samples with num_inference_steps=1, "
        "guidance_scale=1; or as an EDM network's folder.",
        add_export,
    ),
    "report": (
        "one self-contained HTML page about a run, or about several",
        "Curves, sample grid, metrics beside published ones, ratio and weight by noise level, "
        "alerts and the resolved recipe in one file without outside links. Of several runs: their "
        "curves overlaid, a column each in the tables, and the fields in which recipes differ.",
        add_report,
    ),
    "figures": (
        "the paper's figures, from runs or from toy runs made on the spot",
        "Draw Fig. 2, 3, 4a, 4b, 5, 6b, 7, 8, 9 and sample grids (6a, 10 to 18) as PNG and SVG, "
        "the numbers behind each as CSV beside it. What needs runs takes those given; where they "
        "do not serve, two-dimensional ones are trained in OUT/toy, half a minute each.",
        add_figures,
    ),
    "ablate": (
        "a matrix of distillations with their evaluations, and its table",
        "Run every combination of a plan's axes with every seed, skipping what is finished, and "
        "write mean and spread over seeds and the ratio to a baseline, paired by seed, as "
        "OUT/table.md and table.csv. A signal saves the run under way and ends with status 85; the "
        "same command goes on.",
        add_ablate,
    ),
    "checkpoint": (
        "list, verify or prune a run's checkpoints",
        "ls: steps, sizes, scores; verify: every file against its SHA-256; prune: remove what the "
        "given --keep-* do not ask for.",
        add_checkpoint,
    ),
    "status": (
        "how runs are doing",
        "State, step, rate, time left, last checkpoint, restarts with their reasons, goodput and "
        "health of a run, or a line each of several; from their folders alone.",
        add_status,
    ),
    "doctor": (
        "look for what would spoil a run, before it starts",
        "Check machines, packages, attention, links between ranks, shards, disk space, teacher and "
        "layout of a recipe, on this machine or as a job on all nodes; the bad node is named. "
        "Status 1 if something failed.",
        add_doctor,
    ),
    "fetch": (
        "bring what a recipe needs from elsewhere, for jobs without a network",
        "Download the teacher, and the networks of metrics that evaluation.networks names: of the "
        "hub at their pinned commits into HF_HOME, with every file checked; EDM's from NVIDIA.",
        add_fetch,
    ),
    "job": (
        "bookkeeping of slurm/*.sbatch",
        "Notes in RUN/jobs.jsonl when a Slurm job begins and how it ended, and decides whether it "
        "goes back into the queue.",
        add_job,
    ),
    "plan": (
        "memory, time and traffic of a recipe on many GPUs",
        "What a distillation needs of so many GPUs: memory by part, FLOPs, bytes sent and read, "
        "days and GPU hours; counted on the meta device, without a GPU or the teacher's weights. "
        "Status 2 if it does not fit, with what would make it fit.",
        add_plan,
    ),
    "bench": (
        "how fast the parts of training are on this machine",
        "Measure one part of training; contestants take turns, so that a slow minute of the "
        "machine hits them all.",
        add_bench,
    ),
    "import-edm": (
        "an EDM teacher from NVIDIA's published file",
        "Read the averaged network out of one of NVIDIA's pickles without running anything in it, "
        "and write it as safetensors and JSON. A file that names anything else than those do is "
        "refused.",
        add_import_edm,
    ),
    "show-config": (
        "print a recipe with every default filled in",
        "Print the resolved recipe as YAML that loads to the same recipe.",
        add_show_config,
    ),
}
