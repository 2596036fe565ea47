"""The work of the page, without widgets: jobs, sessions, the device, settings and training runs."""
