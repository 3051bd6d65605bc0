"""Print the folder of irc's CMake package.

  cmake -B build -Dirc_DIR="$(irc cmake-dir)"

CMakeLists.txt then has find_package(irc REQUIRED) and irc_add_model(NAME MODEL model.onnx).
"""

from __future__ import annotations

import argparse

from irc.cli import arguments, output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from irc.cmake import FOLDER

    if args.json:
        output.print_json({"directory": str(FOLDER)})
    else:
        print(FOLDER)
    return 0
