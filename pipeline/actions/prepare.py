"""Check a data set; `download=true` downloads voc12 or coco14 first."""

from dataclasses import dataclass
from typing import Any

from steps.runtime.datasets import download_dataset, list_findings, open_dataset, prepare_dataset
from wsss.data.findings import Finding, report_table
from wsss.data.folder_prepare import draw_samples
from wsss.files import user_path


@dataclass
class Settings:
    download: bool               # download the missing official archives


def do(pipeline: Any) -> list[list[Finding]]:
    """The findings about the download, the files and the lists. Raises DataError if something required is missing."""
    config, console = pipeline.config, pipeline.console
    tables = []
    if config.download:
        console.start("download")
        tables.append(download_dataset(config.data, console.progress))
        console.result(report_table(tables[-1]))
    if findings := prepare_dataset(config.data):
        tables.append(findings)
        console.result(report_table(findings))
    dataset = open_dataset(config.data, reread=True)
    tables.append(list_findings(dataset))
    console.result(report_table(tables[-1]))
    if dataset.read_from:   # a folder of one's own: whether it was understood
        samples = draw_samples(dataset, user_path(config.outputs) / f"{config.data.name}_samples.png")
        console.result(f"samples of images and masks: {samples}")
    return tables


def run(pipeline: Any) -> int:
    do(pipeline)
    return 0
