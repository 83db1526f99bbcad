"""Verbs that make shards of shards."""

from __future__ import annotations

from pathlib import Path

from data_prep.verbs.options import Add, Arguments, add_conversion, check_input, count, say


def add_latents(add: Add) -> None:
    verb = add(
        "latents",
        _latents,
        "encode the images: adds latent.npy",
        "Add the posterior mean of an autoencoder, fp16 and unscaled, to every sample. The "
        "autoencoder's hash and scale go into the manifest; two are never mixed.",
    )
    add_conversion(verb)
    verb.add_argument(
        "--vae", metavar="PIPELINE", type=Path, required=True, help="diffusers pipeline folder"
    )
    verb.add_argument(
        "--batch-size", type=count, default=64, help="images encoded at once (%(default)s)"
    )
    verb.add_argument(
        "--device",
        default="cpu",
        help="where to encode, as torch names it (%(default)s); cuda: on every GPU of the node; "
        "several with commas",
    )
    verb.add_argument(
        "--clip", metavar="FOLDER", type=Path, help="also add clip.npy, this CLIP's embedding"
    )
    verb.add_argument(
        "--drop-images", action="store_true", help="leave the image files out of the new shards"
    )


def _latents(args: Arguments) -> None:
    check_input(args.shards)
    from data_prep.latents import latents

    manifest = latents(
        args.shards,
        args.out,
        vae=args.vae,
        clip=args.clip,
        batch_size=args.batch_size,
        device=args.device,
        drop_images=args.drop_images,
        overwrite=args.overwrite,
    )
    say(args.out, manifest)


def add_captions(add: Add) -> None:
    verb = add(
        "captions",
        _captions,
        "clean the captions and tokenise them: adds tokens.npy",
        "Clean every caption (HTML entities, Unicode normal form, control characters, URLs, white "
        "space; the original stays in the json) and add its token ids. Captions that are empty or "
        "longer than the tokenizer's limit are counted.",
    )
    add_conversion(verb)
    verb.add_argument(
        "--tokenizer",
        metavar="PIPELINE",
        type=Path,
        required=True,
        help="diffusers pipeline folder",
    )
    other = verb.add_mutually_exclusive_group()
    other.add_argument("--field", help="take captions from this field of the samples' json")
    other.add_argument(
        "--recaptions",
        metavar="PARQUET",
        type=Path,
        help="take captions from this file, by the column 'id'; samples it lacks keep theirs",
    )
    verb.add_argument("--column", default="caption", help="of --recaptions, the text (%(default)s)")


def _captions(args: Arguments) -> None:
    check_input(args.shards)
    from data_prep.captions import captions

    manifest = captions(
        args.shards,
        args.out,
        tokenizer=args.tokenizer,
        field=args.field,
        recaptions=args.recaptions,
        column=args.column,
        overwrite=args.overwrite,
    )
    say(args.out, manifest)
