"""Makes the models of `engine/demo` from nothing but packages of PyPI and Debian.

    python benchmarks/train_demo.py prepare          # on any machine: 60 MB of downloads, 3 minutes
    python benchmarks/train_demo.py train            # on one GPU: about 8 minutes
    python benchmarks/train_demo.py report           # puts the results where they are committed

`prepare` writes the tokenizer and the token ids to `demo_data/`, `train` the models and everything
that docs/demo_models.md states of them to `demo_models/`. Seeds and numbers of steps are fixed. Two
runs on one kind of GPU differ only by the order in which it adds numbers.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("demo_data"), metavar="FOLDER")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="download, choose, tokenize")
    prepare.add_argument("--archives", type=Path, default=Path("demo_archives"), metavar="FOLDER")
    train = commands.add_parser("train", help="train and judge all models")
    train.add_argument("--output", type=Path, default=Path("demo_models"), metavar="FOLDER")
    train.add_argument("--steps-scale", type=float, default=1.0, help="for trials: 0.01")
    train.add_argument("--eager", action="store_true", help="compile nothing")
    report = commands.add_parser("report", help="put the results where they are committed")
    report.add_argument("--trained", type=Path, default=Path("demo_models"), metavar="FOLDER")
    options = parser.parse_args()
    if options.command == "prepare":
        from demo_training.prepared import prepare as make

        print(make(options.data, options.archives))
        return
    if options.command == "report":
        from demo_training.report import report as put

        put(options.data, options.trained, Path(__file__).parents[1])
        return
    from demo_training.family import run

    run(options.data, options.output, steps_scale=options.steps_scale, compiled=not options.eager)


if __name__ == "__main__":
    main()
