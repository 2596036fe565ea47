"""The web UI: a page on which people watch a model teach itself. It needs the extra `app`, and `app.py` starts it."""
