"""`fracture app` starts the page; tests/webui tests the page itself."""

from fracture_lib.cli import main


def test_app_serves_the_page_until_it_is_stopped(monkeypatch):
    calls = []
    monkeypatch.setattr("fracture_lib.webui.launch.main", lambda: calls.append("served"))
    assert main(["app"]) == 0
    assert calls == ["served"]
