"""Celery's command line with our app, for `themes worker`.

`celery -A workers.app` would look for the app in the current directory first.
"""

import sys

from workers.app import app

if __name__ == "__main__":
    app.start(sys.argv[1:])
