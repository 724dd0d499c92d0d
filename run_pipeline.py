"""The door: `python run_pipeline.py [key=value ...]` composes the configuration and hands it to the pipeline."""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pipeline.commandline import act, end_with
from pipeline.config import compose, register
from pipeline.runner import Pipeline
from wsss.errors import WsssError


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def _run(config: DictConfig) -> None:
    try:
        pipeline = Pipeline(config, tuple(HydraConfig.get().overrides.task))
    except WsssError as error:
        end_with(error)
    if exit_code := act(pipeline):
        sys.exit(exit_code)


def main() -> None:
    register()
    words = sys.argv[1:]
    flags = {word for word in words if word.startswith("-")}
    overrides = [word for word in words if "=" in word] if flags else words
    if flags <= {"--cfg", "-c", "--resolve"}:   # our own words for a mistyped key, before Hydra's
        try:
            compose(overrides)
        except WsssError as error:
            end_with(error)
    _run()


if __name__ == "__main__":
    main()
