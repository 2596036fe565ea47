"""The web UI: a page in which people watch a model teach itself. Needs the extra `app`; `app.py` starts it."""
