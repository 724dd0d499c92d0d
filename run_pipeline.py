"""`python run_pipeline.py [key=value ...]`: composes the configuration and runs the action."""

import sys

from pipeline.helptext import help_text

if __name__ == "__main__":   # before the slow imports
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text())
        sys.exit()

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from pipeline.commandline import act, end_with
from pipeline.config import compose, register
from pipeline.multirun import Sweep
from pipeline.runner import Pipeline
from pipeline.words import as_meant
from wsss.errors import WsssError


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def _run(config: DictConfig) -> None:
    try:
        pipeline = Pipeline(config, tuple(HydraConfig.get().overrides.task))
    except WsssError as error:
        end_with(error)
    exit_code = act(pipeline)
    if exit_code and HydraConfig.get().mode != RunMode.MULTIRUN:   # other members of a sweep still run
        sys.exit(exit_code)


def _sweep(words: list[str]) -> int:
    def call(arguments: list[str]) -> None:
        sys.argv[1:] = arguments
        _run()
    try:
        return Sweep(words).run(call)
    except WsssError as error:
        end_with(error)


def main() -> None:
    register()
    words = sys.argv[1:] = [as_meant(word) for word in sys.argv[1:]]
    flags = {word for word in words if word.startswith("-")}
    if flags & {"-m", "--multirun"} and not flags & {"--cfg", "-c"}:
        sys.exit(_sweep(words))
    overrides = [word for word in words if "=" in word] if flags else words
    if flags <= {"--cfg", "-c", "--resolve"}:   # our message for a mistyped key, before Hydra's
        try:
            compose(overrides)
        except WsssError as error:
            end_with(error)
    _run()


if __name__ == "__main__":
    main()
