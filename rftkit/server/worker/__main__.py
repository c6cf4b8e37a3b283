"""`python -m rftkit.server.worker.worker`: the worker process."""

from rftkit.server.worker.worker import main

if __name__ == "__main__":
    main()
