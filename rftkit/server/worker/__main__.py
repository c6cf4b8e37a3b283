"""`python -m rftkit.server.worker`: start the worker process."""

from rftkit.server.worker.worker import main

if __name__ == "__main__":
    main()
