"""The WSGI application: ``gunicorn wsgi:app``, or any other WSGI server.

Faulty settings are printed one a line and end the process with exit code 2.
Runs on: worker.
"""

import sys

from app.errors import ConfigError
from app.factory import create_app

try:
    app = application = create_app()
except ConfigError as error:
    sys.stderr.write("".join(f"{fault}\n" for fault in error.faults))
    if "gunicorn.arbiter" in sys.modules:
        raise  # only without our gunicorn.conf.py: gunicorn halts on an exception, but respawns on an exit
    sys.exit(2)
