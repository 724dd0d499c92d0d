"""VERSION of a step is tied to the sources that it reaches."""

import json

from tests.versions import RECORD, current, digest, findings

REMEDY = ("Does the change alter results of these steps? Then raise VERSION in their files: finished runs make them again. "
          "In both cases record the sources: python -m tests.versions")


def test_every_change_of_the_sources_of_a_step_was_judged():
    assert not (found := findings(json.loads(RECORD.read_text()), current())), "\n".join([*found, REMEDY])


def test_a_change_of_the_science_is_found_for_the_steps_that_reach_it():
    now = current()
    version = now["versions"]["make_lpcam"]
    before = {**now, "sources": {**now["sources"], "wsss.cams.clustering": "other"}}
    assert findings(before, now) == [f"make_lpcam: VERSION is {version} as before, but wsss.cams.clustering changed"]
    before["versions"] = {**now["versions"], "make_lpcam": 1}
    assert findings(before, now) == [f"make_lpcam: VERSION {version} is not recorded"]


def test_a_change_of_a_method_is_found_for_the_step_that_runs_it():
    now = current()
    before = {**now, "sources": {**now["sources"], "wsss.cams.cam": "other"}}
    version = now["versions"]["make_cam"]
    assert f"make_cam: VERSION is {version} as before, but wsss.cams.cam changed" in findings(before, now)


def test_only_code_counts(tmp_path):
    def of(text: str) -> str:
        (tmp_path / "a.py").write_text(text)
        return digest(tmp_path / "a.py")
    code = 'def f(x):\n    """Words."""\n    return f"{x + 1}"  # why\n'
    assert of(code) == of('"""Of the file.\n\nMore."""\ndef f(x):\n    """Other\n    words."""\n\n    return f"{x + 1}"\n')
    assert of(code) != of(code.replace("+", "-"))
