"""deepprop export: write a saved network as a program that runs without deepprop."""

import argparse
from pathlib import Path

import deepprop as dp
from deepprop._arithmetic import wide
from deepprop.command.words import (
    first_ten,
    preparation_of,
    resolve,
    scaling_and_classes,
)


def export(args: argparse.Namespace) -> int:
    """Write the program, which takes raw inputs, and print the shapes it takes and returns."""
    if args.out.resolve() == Path(args.model).resolve():
        raise ValueError(f"MODEL.npz and --out must be two files, got {args.out} for both")
    params = dp.load(args.model, own=[resolve(name) for name in args.own])
    scaling, classes, note = scaling_and_classes(args.model, params)
    dp.export(args.out, params, platforms=args.platforms.split(","), scaling=scaling)
    n_0, n_L, dtype = params[0].W.shape[-1], params[-1].W.shape[0], wide(params[0].W.dtype)
    rows = "" if classes is None else f", one row per class: {first_ten(classes)}"
    preparation = preparation_of(args.model)
    print(note, end="")
    if preparation is not None:
        print(f"inputs     of a prepared table: {', '.join(preparation.names())}")
    print(f"takes      {dtype} ({n_0}, m), one example per column, not scaled")
    print(f"returns    {dtype} ({n_L}, m){rows}")
    print(f"saved      {args.out}")
    return 0
