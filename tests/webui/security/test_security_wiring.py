"""What `app.py` makes of its options: who may use a token, and whose shelf stays."""

import importlib.util
import sys

import gradio as gr
import pytest

from helpers.folders import ROOT


@pytest.fixture
def wired(monkeypatch, lm, tmp_path):
    """How `app.py` builds and serves its page with these options: the arguments of both."""

    def wired(*options, **environment):
        monkeypatch.setenv("SEAL_HF_HOME", str(tmp_path / "home"))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        spec = importlib.util.spec_from_file_location("tested_app", ROOT / "app.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = {}
        build_page = module.build_page

        def build(workbench, *arguments, **keywords):
            session = workbench.sessions.open()
            shelf = workbench.shelves.of(session).folder if workbench.shelves.is_kept(session) else None
            found.update(keywords, shelf=shelf)
            return build_page(workbench, *arguments, **keywords)

        monkeypatch.setattr(module, "load", lambda args: lm)
        monkeypatch.setattr(module, "exit_on_signals", lambda: None)
        monkeypatch.setattr(module, "build_page", build)
        monkeypatch.setattr(gr.Blocks, "launch", lambda self, **keywords: found.update(keywords, page=self))
        monkeypatch.setattr(sys, "argv", ["app.py", "--output_dir", str(tmp_path), *options])
        module.main(module.parse_arguments())
        return found

    return wired


@pytest.mark.parametrize(
    ("options", "may_push"),
    [
        ([], True),
        (["--host", "localhost"], True),
        (["--share"], False),
        (["--host", "0.0.0.0"], False),
        (["--host", "192.168.1.2"], False),
        (["--host", "::"], False),
        (["--host", "127.0.0.1.evil.example"], False),
    ],
)
def test_only_a_page_of_this_machine_alone_may_use_the_token_and_the_shelf(wired, options, may_push, tmp_path):
    found = wired(*options)
    assert found["shelf"] == (tmp_path / "home" / "shelf" if may_push else None)
    assert (found["may_push"], found["on_space"]) == (may_push, False)
    names = {getattr(function.fn, "__name__", "") for function in found["page"].fns.values() if function.fn}
    assert ("push_adapter" in names) == ("on_push" in names) == may_push
    assert found["server_name"].strip("[]") == (options[1] if "--host" in options else "127.0.0.1")


def test_another_shelf_can_be_named_where_nobody_else_reaches_it(wired, tmp_path):
    assert wired("--shelf", str(tmp_path / "mine"))["shelf"] == tmp_path / "mine"
    with pytest.raises(ValueError, match="--shelf .*mine is for a page that you alone reach: leave it out"):
        wired("--shelf", str(tmp_path / "mine"), "--share")
