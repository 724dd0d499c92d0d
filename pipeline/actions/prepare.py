"""Check a data set; `download=true` downloads voc12 or coco14 first."""

from dataclasses import dataclass
from typing import Any

from steps.runtime.datasets import download_dataset, list_findings, open_dataset, prepare_dataset
from wsss.data.findings import Finding, report_table


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
    for check in (prepare_dataset, lambda data: list_findings(open_dataset(data, reread=True))):
        if findings := check(config.data):
            tables.append(findings)
            console.result(report_table(findings))
    return tables


def run(pipeline: Any) -> int:
    do(pipeline)
    return 0
