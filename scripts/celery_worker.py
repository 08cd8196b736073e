"""The process that `themes worker` supervises: Celery's command line with our app.

`celery -A workers.app` looks for the app in the current directory first, where anybody's file may lie.
"""

import sys

from workers.app import app

if __name__ == "__main__":
    app.start(sys.argv[1:])
