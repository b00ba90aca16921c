"""`fracture app` starts the page; tests/webui tests the page itself."""

import pytest

from fracture_lib.cli import main


@pytest.mark.parametrize(("arguments", "fast"), [([], False), (["--fast"], True)])
def test_app_serves_the_page_until_it_is_stopped(monkeypatch, arguments, fast):
    calls = []
    monkeypatch.setattr("fracture_lib.webui.launch.main", lambda **options: calls.append(options))
    assert main(["app", *arguments]) == 0
    assert calls == [{"fast": fast}]
